"""The server learns the sum of the survivors' inputs, bit for bit, whoever falls silent where."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.noise import OsEntropy
from privacy.secure_sum import client, server
from privacy.secure_sum.errors import SecureSumError
from privacy.secure_sum.sheet import Total
from tests.privacy.secure_sum.driving import Play, inputs, names, plain_sum, session, sheet, sites


def test_the_sum_of_three_sites_by_hand():
    # In quarters: 1, 3 and 2, 2 and nothing -> 3/4, 5/4 from two voters on row 0; one voter on row 1.
    form = sheet(2, 2, step=0.25)
    votes = {
        "site-00": form.quantised(np.array([[0.25, 0.75], [1.0, 0.0]])),
        "site-01": form.quantised(np.array([[0.5, 0.5], [7.0, 7.0]]), np.array([True, False])),
        "site-02": form.quantised(np.full((2, 2), np.nan), np.array([False, False])),
    }
    total = Play(session(3, 2), sites(3)).whole(form, votes).total
    assert total.votes.tolist() == [[0.75, 1.25], [1.0, 0.0]]
    assert total.counts.tolist() == [2, 1]
    assert total.clients == names(3)
    rows, means = total.means(needed=2)
    assert (rows.tolist(), means.tolist()) == ([0], [[0.375, 0.625]])


@pytest.mark.parametrize(("count", "threshold"), [(3, 2), (4, 3)])
def test_every_pattern_of_silence_gives_the_sum_of_the_survivors_or_a_sentence(count, threshold):
    """Each client falls silent in one of the five stages or never: 5^3 and 5^4 patterns (stage 4 is not played)."""
    form, of = sheet(1, 1, step=2.0**-4), session(count, threshold)
    steps = inputs(of, form)
    for when in product((1, 2, 3, 5, 9), repeat=count):
        silent = {stage: [name for name, last in zip(of.clients, when, strict=True) if last == stage] for stage in when}
        play = Play(of, sites(count), silent)
        survivors = tuple(name for name, last in zip(of.clients, when, strict=True) if last > 3)
        if sum(last == 9 for last in when) >= threshold:
            total = play.whole(form, steps).total
            assert total.clients == survivors
            np.testing.assert_array_equal(total.steps, plain_sum(steps, survivors))
        else:
            with pytest.raises(SecureSumError, match=f"{threshold} are needed: the sum fails"):
                play.whole(form, steps)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_decoded_sum_equals_the_plain_sum_of_the_quantised_votes_bit_for_bit(data):
    count = data.draw(st.integers(3, 7))
    threshold = data.draw(st.integers(count // 2 + 1, count))
    step = 2.0 ** -data.draw(st.integers(0, 30))
    low = step * data.draw(st.integers(-(2**12), 0))
    form = sheet(
        data.draw(st.integers(1, 5)),
        data.draw(st.integers(1, 4)),
        counted=data.draw(st.booleans()),
        step=step,
        low=low,
        high=low + step * data.draw(st.integers(1, 2**16)),
    )
    of = session(count, threshold)
    steps = inputs(of, form, data.draw(st.integers(0, 2**32)))
    order = data.draw(st.permutations(of.clients))
    stages = [data.draw(st.sampled_from((1, 2, 3, 5))) for _ in range(count - threshold)]
    silent = {stage: [name for name, last in zip(order, stages, strict=False) if last == stage] for stage in stages}
    total = Play(of, sites(count), silent).whole(form, steps).total
    survivors = [name for name in of.clients if name not in {gone for at in (1, 2, 3) for gone in silent.get(at, ())}]
    assert total.clients == tuple(survivors)
    # Floats that are multiples of a power of two: numpy's own sum of them is exact, in every order.
    votes = np.sum([steps[name][:, : form.columns] * form.step for name in survivors], axis=0)
    assert total.votes.tobytes() == votes.tobytes()
    if form.counted:
        assert total.counts.tolist() == np.sum([steps[name][:, -1] for name in survivors], axis=0).tolist()


def test_the_order_in_which_inputs_arrive_does_not_matter():
    form, of = sheet(), session()
    steps = inputs(of, form)
    play = Play(of, sites(4))
    shared = play.shared(play.keyed())
    forwards = play.masked(shared, form, steps)
    backwards = server.summing(shared, form)
    for name in reversed(of.clients):
        backwards = server.added(backwards, name, play.traffic[-1][name])
    np.testing.assert_array_equal(forwards.words, backwards.words)
    np.testing.assert_array_equal(play.opened(backwards).total.steps, plain_sum(steps, of.clients))


@pytest.mark.parametrize("extreme", ["low", "high"])
@pytest.mark.parametrize(("low", "high", "step"), [(0.0, 1.0, 1.0), (-16.25, 0.0, 0.25), (-1.0, 3.0, 2.0**-29)])
def test_the_largest_sum_that_is_possible_does_not_wrap_around(low, high, step, extreme):
    form, of = sheet(2, 2, low=low, high=high, step=step), session(5, 3)
    votes = np.full((2, 2), {"low": low, "high": high}[extreme])
    total = Play(of, sites(5)).whole(form, dict.fromkeys(of.clients, form.quantised(votes))).total
    assert total.votes.tolist() == (5 * votes).tolist()
    assert total.counts.tolist() == [5, 5]


def test_one_bit_less_would_wrap_around():
    # 5 clients of at most 3 steps, at least 0: sums 0..15 are sixteen, four bits; one more client needs a fifth.
    form = sheet(counted=False, step=1.0, high=3.0)
    assert [form.limits(5), form.bits(5), form.bits(6)] == [(0, 15), 4, 5]
    # -2..1 steps of 4 clients and 3 steps of headroom: -11..7, nineteen sums.
    form = sheet(counted=False, step=1.0, low=-2.0, high=1.0, headroom=3)
    assert [form.limits(4), form.bits(4)] == [(-11, 7), 5]
    # Counts of up to 4 where votes sum to at most 0.
    form = sheet(step=1.0, low=-1.0, high=0.0)
    assert [form.limits(4), form.bits(4)] == [(-4, 4), 4]


def test_noise_within_the_headroom_is_summed_exactly():
    form, of = sheet(4, 3, counted=False, step=2.0**-8, headroom=10_000), session(5, 3)
    rng = np.random.default_rng(3)
    noisy = {name: steps + rng.integers(-2000, 2001, form.shape) for name, steps in inputs(of, form).items()}
    total = Play(of, sites(5), {3: ["site-02"]}).whole(form, noisy).total
    np.testing.assert_array_equal(total.steps, plain_sum(noisy, [name for name in of.clients if name != "site-02"]))


def test_noise_beyond_the_headroom_is_never_refused_and_wraps_around():
    # -2..5 steps hold three clients' bits and two of headroom: eight sums, modulo 8. 3 + 3 + 3 = 9 = 1 + 8.
    form, of = sheet(1, 1, counted=False, step=1.0, headroom=2), session(3, 2)
    assert form.bits(3) == 3
    total = Play(of, sites(3)).whole(form, dict.fromkeys(of.clients, np.array([[3]]))).total
    assert total.steps.tolist() == [[1]]
    total = Play(of, sites(3)).whole(form, dict.fromkeys(of.clients, np.array([[-(2**40)]]))).total
    assert total.steps.tolist() == [[0]]


def test_numbers_wider_than_32_bits_are_summed_in_64_bit_words():
    form, of = sheet(2, 2, step=2.0**-30), session(9, 5)
    assert form.bits(9) == 34
    steps = inputs(of, form)
    total = Play(of, sites(9), {3: ["site-00", "site-08"]}).whole(form, steps).total
    np.testing.assert_array_equal(total.steps, plain_sum(steps, of.clients[1:8]))


def test_the_systems_entropy_serves_as_well():
    form, of = sheet(), session()
    play = Play(of, sites(4))
    play.entropy = dict.fromkeys(of.clients, OsEntropy())
    steps = inputs(of, form)
    np.testing.assert_array_equal(play.whole(form, steps).total.steps, plain_sum(steps, of.clients))


def test_registered_sites_that_agree_on_the_survivors_get_the_same_sum():
    form, of = sheet(), session(5, 3)
    steps = inputs(of, form)
    silent = {1: ["site-00"], 4: ["site-03"]}  # the second has sent its input; others open the sum with it
    total = Play(of, sites(5, registered=True, agreement=True), silent).whole(form, steps).total
    np.testing.assert_array_equal(total.steps, plain_sum(steps, of.clients[1:]))


def test_what_a_client_tells_last_leaves_nothing_in_its_state():
    form, of = sheet(), session()
    play = Play(of, sites(4))
    keyed = play.keyed()
    assert {len(state.secrets) for state in play.states.values()} == {96}
    shared = play.shared(keyed)
    summing = play.masked(shared, form, inputs(of, form))
    assert {state.secrets + state.roster for state in play.states.values()} == {b""}
    play.opened(summing)
    for state in play.states.values():
        assert state == client.ClientState(state.stage, of.encoded(), state.number, seen=state.seen)


def test_means_need_counts_and_at_least_one_vote():
    counted = Total(np.array([[6, 0, 3], [0, 0, 0]]), sheet(2, 2, step=0.25), names(3))
    assert [part.tolist() for part in counted.means()] == [[0], [[0.5, 0.0]]]
    with pytest.raises(ValueError, match="needed=0 must be 1 or more"):
        counted.means(needed=0)
    plain = Total(np.array([[6, 0]]), sheet(1, 2, counted=False), names(3))
    with pytest.raises(ValueError, match="this sheet has no counts"):
        plain.means()
