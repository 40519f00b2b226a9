"""The simplex quantiser against the reference's numbers and a dumber one; its enumerative code against a list."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.codecs.compositions import compositions, ranks, unranked
from strategies.codecs.quantised import Quantised
from strategies.soft_labels import SoftLabels


# 5.2: .50 .30 .15 .05 and its rows of levels; L1 errors .4000 = |.5-.6667| + |.3-.3333| + .15 + .05, and so on
@pytest.mark.parametrize(
    ("bits", "levels", "error"),
    [
        (1, [1, 0, 0, 0], 1.0),
        (2, [2, 1, 0, 0], 0.4),
        (3, [4, 2, 1, 0], 0.1429),
        (4, [8, 4, 2, 1], 0.1),
        (8, [128, 76, 38, 13], 0.0059),
    ],
)
def test_the_quantiser_gives_the_levels_of_the_reference(bits, levels, error):
    codec, log_probs = Quantised(bits), np.log([[0.50, 0.30, 0.15, 0.05]]).astype(np.float32)
    symbols = codec.symbols(log_probs, np.array([0]))
    assert symbols.tolist() == ([levels[:-1]] if bits > 1 else [[0]])
    assert np.abs(np.array(levels) / codec.steps - np.exp(log_probs[0])).sum() == pytest.approx(error, abs=1e-4)
    # 1e-4 of uniform is mixed in, so that a level of 0 is no veto
    expected = (1 - 1e-4) * np.array(levels) / codec.steps + 1e-4 / 4
    assert np.exp(codec.values(symbols, 4)) == pytest.approx(expected[None], rel=1e-5)


def test_the_quantiser_does_not_see_how_far_a_row_is_from_normal():
    # 200.495 and 54.505 of 255: the missing unit goes to .505. Unnormalised, e^9e-5 would make it .513 against .510.
    probs = np.array([[200.495, 54.505]]) / 255
    for drift in (-9e-5, 0.0, 9e-5):
        log_probs = (np.log(probs) + drift).astype(np.float32)
        assert Quantised(8).symbols(log_probs, np.array([0])).tolist() == [[200]]


def rows_of_levels(steps, classes):
    """All of them, in lexicographic order, the slow way."""
    return [row for row in itertools.product(range(steps + 1), repeat=classes) if sum(row) == steps]


@given(bits=st.integers(1, 3), classes=st.integers(2, 4), seed=st.integers(0, 10**6), scale=st.floats(0.01, 10.0))
@settings(max_examples=100)
def test_no_row_of_levels_is_nearer_than_the_quantisers(bits, classes, seed, scale):
    logits = np.random.default_rng(seed).normal(scale=scale, size=(7, classes))
    codec, log_probs = Quantised(bits), SoftLabels.from_logits(np.arange(7), logits).log_probs
    probs = np.exp(log_probs.astype(np.float64))
    decoded = np.exp(codec.values(codec.symbols(log_probs, np.arange(7)), classes).astype(np.float64))
    # the row of levels that was meant, uniform taken out again
    found = (decoded - 1e-4 / classes) / (1 - 1e-4)
    every = np.array(rows_of_levels(codec.steps, classes)) / codec.steps
    best = np.abs(every[None] - probs[:, None]).sum(axis=2).min(axis=1)
    assert np.abs(found - probs).sum(axis=1) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize(("bits", "classes"), [(2, 2), (2, 4), (3, 3), (2, 7), (4, 4)])
def test_the_enumerative_code_is_the_place_in_the_list(bits, classes):
    steps = 2**bits - 1
    every = np.array(rows_of_levels(steps, classes))
    places = np.arange(len(every), dtype=np.uint64)
    assert compositions(steps, classes) == len(every)
    assert (ranks(every, steps) == places).all()
    assert (unranked(places, steps, classes) == every).all()


def test_the_widest_enumerative_code_is_exact():
    # binom(255 + 10, 10) = 4.0e17, the most classes of eight bits below 2^63
    rng = np.random.default_rng(4)
    levels = rng.multinomial(255, rng.dirichlet(np.full(11, 0.2), 500))
    levels[:2] = [255] + [0] * 10, [0] * 10 + [255]
    numbers = ranks(levels, 255)
    assert numbers[0] == compositions(255, 11) - 1
    assert numbers[1] == 0
    assert (unranked(numbers, 255, 11) == levels).all()


def test_the_worked_example_has_rank_18_of_20():
    # 5.3: (2, 1, 0, 0) in 5 bits: 10010, then zeros
    payload = Quantised(2).pack(np.array([[2, 1, 0]], np.uint8), 4)
    assert payload == bytes([0b10010_000])
