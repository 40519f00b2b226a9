"""Record/replay passes what is sound and names what is not: one test for each injected bug that it must catch."""

import math
from collections import Counter

import numpy as np
import pytest

from privacy.audit.record_replay import Recorder, adversarial_neighbours, record_replay
from privacy.events import Gaussian, RandomizedResponse
from privacy.mechanisms.gaussian import GaussianOutput
from privacy.mechanisms.mechanism import DrawnNoise, clipped, simplex_rows
from privacy.mechanisms.pate import Pate
from privacy.noise import Draw, SeededEntropy

FIRST, SECOND = np.tile(np.eye(4)[0], (9, 1)), np.tile(np.eye(4)[3], (9, 1))
OTHERS = np.random.default_rng(0).dirichlet(np.ones(4), (5, 9))


def noise(*names):
    return DrawnNoise(Draw(SeededEntropy(1, *names)))


def found(run, first=FIRST, second=SECOND):
    return record_replay(run, first, second, noise())


# ---- what is sound ----


@pytest.mark.parametrize("seed", range(20))
def test_a_clean_mechanism_passes_on_every_seed(seed):
    for pair in adversarial_neighbours(20, seed):
        report = record_replay(
            GaussianOutput(1.0, allow_baseline=True).release, pair.first, pair.second, noise("clean", seed)
        )
        assert report.problems == ()
        assert report.worst <= 1.0 + 1e-9


def test_the_worst_pair_attains_the_bound_exactly():
    report = found(GaussianOutput(1.0, allow_baseline=True).release)
    assert report.ratios == pytest.approx((1.0,), abs=1e-12)
    assert report.cost == (Gaussian(1.0, 1),)


def test_a_mechanism_that_goes_on_from_its_outputs_is_judged_with_the_same_outputs():
    def twice(matrix, noise):
        first = noise.gaussian(simplex_rows(matrix), math.sqrt(18), 1.0)
        return noise.gaussian(first + simplex_rows(matrix), math.sqrt(18), 2.0)

    report = found(twice)
    assert report.problems == ()
    assert report.ratios == pytest.approx((1.0, 1.0), abs=1e-12)
    assert report.cost == (Gaussian(1.0, 1), Gaussian(2.0, 1))


def test_an_answer_set_that_a_gate_chose_is_the_same_on_both_sides():
    # Without replay 300 noisy gates would let other rows through for the neighbour.
    gated = Pate(6, 1.0, gate_std=1.0, threshold=2.0)

    def run(matrix, noise):
        votes = np.concatenate([np.full((5, 300, 4), 0.25), np.resize(matrix, (1, 300, 4))])
        answered = gated.gate(votes, noise)
        return answered, gated.release(votes[:, answered], noise)

    report = found(run)
    assert report.problems == ()
    assert len(report.ratios) == 2


def test_responses_may_all_change_and_cost_what_they_are():
    report = found(lambda m, noise: noise.responses(m.argmax(axis=1), 4, 0.7))
    assert (report.problems, report.ratios) == ((), (1.0,))
    assert report.cost == (RandomizedResponse(0.7, 4, 9),)


def test_exactly_the_bound_and_a_rounding_more_are_allowed_but_not_a_thousandth():
    # the two matrices are sqrt(18) apart
    for share, problems in ((1.0, 0), (1.0 - 9e-6, 0), (1.0 - 1.1e-5, 1), (0.999, 1)):
        report = found(lambda m, noise, share=share: noise.gaussian(m, share * math.sqrt(18), 1.0))
        assert len(report.problems) == problems


# ---- the bugs of table 8.2 that it must catch ----


def declaring(sensitivity):
    return lambda matrix, noise: noise.gaussian(simplex_rows(matrix), sensitivity, 1.0)


@pytest.mark.parametrize(
    ("bug", "sensitivity", "ratio"),
    [
        ("sqrt 2 forgotten", math.sqrt(9), math.sqrt(2)),
        ("one row for the matrix", math.sqrt(2), 3.0),
        ("1/n for n = 1000 records", 1 / 1000, 1000 * math.sqrt(18)),
    ],
)
def test_a_sensitivity_that_is_too_small_is_found(bug, sensitivity, ratio):
    report = found(declaring(sensitivity))
    assert report.worst == pytest.approx(ratio, rel=1e-9), bug
    assert report.problems == (f"call 1: gaussian input moved by 4.24264, declared {sensitivity:.6g}",)


@pytest.mark.parametrize("attribute", ["sensitivity"])
def test_the_same_bugs_inside_a_mechanism_are_found(monkeypatch, attribute):
    votes = [np.concatenate([OTHERS, matrix[None]]) for matrix in (FIRST, SECOND)]
    assert record_replay(Pate(6, 1.0).release, *votes, noise()).problems == ()
    for wrong in (lambda self, rows: math.sqrt(rows), lambda self, rows: math.sqrt(2.0)):
        for kind in (Pate, GaussianOutput):
            monkeypatch.setattr(kind, attribute, wrong)
        assert record_replay(Pate(6, 1.0).release, *votes, noise()).worst > 1.4
        assert found(GaussianOutput(1.0, allow_baseline=True).release).worst > 1.4


def records(seed=0, size=40.0):
    """Gradients of 16 records, and the same with one of them left out (zero)."""
    gradients = np.random.default_rng(seed).normal(size=(16, 5)) * size
    gradients[-1] = -gradients[:-1].sum(axis=0)  # the one that pulls against all others
    return gradients, np.concatenate([gradients[:-1], np.zeros((1, 5))])


def per_record(gradients):
    return sum(clipped(row, 1.0) for row in gradients)


@pytest.mark.parametrize(
    ("bug", "step", "least"),
    [
        ("none", lambda g, noise: noise.gaussian(per_record(g), 1.0, 1.0), None),
        ("no clipping", lambda g, noise: noise.gaussian(g.sum(axis=0), 1.0, 1.0), 20.0),
        ("clip the batch", lambda g, noise: noise.gaussian(clipped(g.mean(axis=0), 1.0) * 16, 1.0, 1.0), 2.0),
        (
            "divide by the actual batch",
            lambda g, noise: noise.gaussian(per_record(g) / max(1, g.any(axis=1).sum()), 1 / 16, 1.0),
            1.02,
        ),
    ],
)
def test_wrong_sums_of_gradients_are_found(bug, step, least):
    report = record_replay(step, *records(), noise())
    if least is None:
        assert report.problems == ()
        assert report.worst == pytest.approx(1.0, rel=1e-9)
    else:
        assert report.worst > least, bug
        assert len(report.problems) == 1


def test_the_actual_batch_size_is_worst_where_batches_are_small():
    # Two opposite records of norm 1, then one: 0/2 against 1/1, where 1/(q n) = 1/16 was declared.
    def step(gradients, noise):
        return noise.gaussian(per_record(gradients) / max(1, gradients.any(axis=1).sum()), 1 / 16, 1.0)

    two = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert record_replay(step, two, np.array([[1.0, 0.0], [0.0, 0.0]]), noise()).worst == pytest.approx(16.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_found(bad):
    broken = FIRST.copy()
    broken[0, 0] = bad
    unguarded = lambda m, noise: noise.gaussian(m, math.sqrt(18), 1.0)  # noqa: E731
    for first, second in ((FIRST, broken), (broken, FIRST), (broken, broken)):
        report = record_replay(unguarded, first, second, noise())
        assert report.problems
        assert not report.worst <= 1.0
    guarded = lambda m, noise: noise.gaussian(simplex_rows(m), math.sqrt(18), 1.0)  # noqa: E731
    assert record_replay(guarded, FIRST, broken, noise()).problems == ()


@pytest.mark.parametrize(
    ("bug", "run", "says"),
    [
        (
            "more noise calls",
            lambda m, n: [n.gaussian(m, 9.0, 1.0) for _ in range(1 + int(m[0, 3]))],
            "call 2: gaussian",
        ),
        ("fewer", lambda m, n: [n.gaussian(m, 9.0, 1.0) for _ in range(2 - int(m[0, 3]))], "1 noise calls after 2"),
        ("another size", lambda m, n: n.gaussian(m, 9.0, 1.0 + m[0, 3]), "call 1: .*2.0.* after .*1.0"),
        ("another sensitivity", lambda m, n: n.gaussian(m, 9.0 + m[0, 3], 1.0), "call 1: .*10.0.* after .*9.0"),
        ("another grid", lambda m, n: n.gaussian(m, 9.0, 1.0, 1.0 + m[0, 3]), "call 1: .*2.0.* after .*1.0"),
        ("another shape", lambda m, n: n.gaussian(m[m[:, 0] > 0], 9.0, 1.0), r"\(0, 4\)\) after .*\(9, 4\)\)"),
        (
            "another kind",
            lambda m, n: n.gaussian(m, 9.0, 1.0) if m[0, 3] else n.responses(m.argmax(axis=1), 4, 1.0),
            "'gaussian'.* after .*'responses'",
        ),
        ("un-noised beside it", lambda m, n: (n.gaussian(m, 9.0, 1.0), m.sum(axis=0)), "something leaves un-noised"),
        ("a count", lambda m, n: (n.gaussian(m, 9.0, 1.0), int(m[:, 3].sum())), "something leaves un-noised"),
        ("its own scale", lambda m, n: n.gaussian(m, 9.0, 1.0) / (1.0 + m[0, 3]), "something leaves un-noised"),
        ("an exception", lambda m, n: 1 // int(m[0, 0]), "the second run raised ZeroDivisionError"),
        ("one in the first run", lambda m, n: 1 // int(m[0, 3]), "the first run raised ZeroDivisionError"),
    ],
)
def test_what_depends_on_records_without_noise_is_found(bug, run, says):
    report = found(run)
    assert len(report.problems) == 1, bug
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(report.problems[0])


def test_a_release_cannot_hide_what_was_found_by_swallowing_it():
    def run(matrix, noise):
        try:
            return noise.gaussian(matrix, 9.0, 1.0 + matrix[0, 3])
        except Exception:
            return None

    (problem,) = found(run).problems
    assert problem.startswith("call 1: ('gaussian', (9.0, 2.0, ")


def test_integer_noise_and_labels_are_compared_as_well():
    two = np.array([3, 4]), np.array([0, 0])
    report = record_replay(lambda m, n: n.discrete_gaussian(m, 4.0, 2.0), *two, noise())
    assert report.worst == pytest.approx(5.0 / 4.0)
    assert report.cost == (Gaussian(2.0, 1),)


# ---- the recorder and the neighbours ----


def test_what_is_recorded_is_a_copy_of_what_went_in_and_out():
    recorder = Recorder(noise())
    values = np.zeros(3)
    out = recorder.gaussian(values, 2.0, 1.5)
    values += 9.0
    kept = out.copy()
    out += 9.0
    (call,) = recorder.calls
    assert (call.values == 0.0).all()
    assert (call.released == kept).all()
    assert (call.kind, call.parameters) == ("gaussian", (2.0, 1.5, 2.0**-12))


def test_recording_changes_no_noise():
    bare = GaussianOutput(1.0, allow_baseline=True).release(FIRST, noise("same"))
    assert bare.tobytes() == GaussianOutput(1.0, allow_baseline=True).release(FIRST, Recorder(noise("same"))).tobytes()


def test_neighbours_are_every_ordered_pair_of_kinds_in_all_sizes():
    pairs = list(adversarial_neighbours(200, seed=4))
    counts = Counter(pair.name for pair in pairs)
    assert len(counts) == 144
    assert {pair.first.shape for pair in pairs} == {(1, 2), (3, 4), (7, 2), (0, 3), (5, 10), (2, 3)}
    assert all(pair.first.shape == pair.second.shape for pair in pairs)
    matrices = [m for pair in pairs for m in (pair.first, pair.second) if m.size]
    assert any(np.isnan(m).all() for m in matrices)
    assert any(np.isinf(m).all() for m in matrices)
    assert any(np.isfinite(m).all() and np.abs(m).min() >= 1e308 for m in matrices)
    assert any((m == 0.0).all() for m in matrices)
    again = list(adversarial_neighbours(200, seed=4))
    assert all(np.array_equal(a.first, b.first, equal_nan=True) for a, b in zip(pairs, again, strict=True))
