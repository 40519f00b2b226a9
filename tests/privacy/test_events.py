"""Events say what was released, exactly, and nothing else."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.events import Gaussian, PoissonGaussian, RandomizedResponse, from_json, merged, times, to_json

POSITIVE = st.floats(min_value=1e-300, max_value=1e300)
COUNTS = st.integers(min_value=1, max_value=10**9)
EVENTS = st.one_of(
    st.builds(PoissonGaussian, st.floats(min_value=1e-300, max_value=1.0), POSITIVE, COUNTS),
    st.builds(Gaussian, POSITIVE, COUNTS),
    st.builds(RandomizedResponse, POSITIVE, st.integers(min_value=2, max_value=10**6), COUNTS),
)


@given(st.lists(EVENTS))
def test_events_come_back_from_json_bit_for_bit(events):
    assert from_json(to_json(events)) == tuple(events)


@given(st.lists(EVENTS, max_size=6))
def test_merging_keeps_every_count(events):
    before, after = {}, {}
    for told, counts in ((events, before), (merged(events), after)):
        for event in told:
            key = str(to_json([event])[0][:2])
            counts[key] = counts.get(key, 0) + event.count
    assert before == after
    assert len(merged(events)) == len(before)


def test_an_event_taken_n_times_has_n_times_the_count():
    assert times(PoissonGaussian(0.1, 2.0, 3), 4) == PoissonGaussian(0.1, 2.0, 12)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize(
    "make",
    [lambda x: PoissonGaussian(0.1, x, 1), lambda x: Gaussian(x, 1), lambda x: RandomizedResponse(x, 10, 1)],
)
def test_noise_that_is_no_positive_number_is_refused(make, bad):
    with pytest.raises(ValueError, match="must be a finite number above 0"):
        make(bad)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0000001, math.nan])
def test_a_sample_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
        PoissonGaussian(rate, 1.0, 1)


@pytest.mark.parametrize("count", [0, -1, 1.0, True])
def test_a_count_that_is_no_positive_whole_number_is_refused(count):
    for make in (lambda: Gaussian(1.0, count), lambda: times(Gaussian(1.0, 1), count)):
        with pytest.raises(ValueError, match="1 or more"):
            make()


@pytest.mark.parametrize("classes", [1, 0, 2.0, True])
def test_randomised_response_needs_two_classes(classes):
    with pytest.raises(ValueError, match="2 or more"):
        RandomizedResponse(1.0, classes, 1)


@pytest.mark.parametrize(
    "plain",
    [
        None,
        3,
        [3],
        [["gaussian", {}, 1]],
        [["laplace", {}, 1]],
        [["gaussian", {"noise_multiplier": "zz"}, 1]],
        [["gaussian", 5, 1]],
        [["gaussian", {"noise_multiplier": "0x1p0", "other": 1}, 1]],
        ["gaussian"],
    ],
)
def test_what_is_no_event_is_refused(plain):
    with pytest.raises(ValueError, match="no privacy events"):
        from_json(plain)
