"""One row a codec: its size is what it says, its error within what it says, wrong lengths are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.codecs import CODECS, codec_named
from strategies.soft_labels import LOG_FLOOR, SoftLabels

# codec: bytes of 7 rows x 5 classes, largest error of a log-probability l
ROWS = {
    "float32": (4 * 7 * 5, lambda log_probs: 0.0 * log_probs),
    "float16": (2 * 7 * 5, lambda log_probs: np.abs(log_probs) * 2.0**-11 + 1e-7),
}


def test_every_codec_has_a_row():
    assert set(ROWS) == set(CODECS)


@pytest.mark.parametrize("name", sorted(ROWS))
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100.0))
@settings(max_examples=40)
def test_a_round_trip_stays_within_the_stated_error(name, seed, scale):
    logits = np.random.default_rng(seed).normal(scale=scale, size=(7, 5))
    log_probs = SoftLabels.from_logits(np.arange(7), logits).log_probs
    codec = CODECS[name]
    decoded = codec.decode(codec.encode(log_probs), 7, 5)
    floored = np.maximum(log_probs, np.float32(LOG_FLOOR))
    assert decoded.dtype == np.float32
    assert (np.abs(decoded - floored) <= ROWS[name][1](floored)).all()
    assert np.abs(np.exp(decoded.astype(np.float64)).sum(1) - 1).max() <= codec.sum_tolerance(5)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_the_stated_size_is_the_real_one(name):
    log_probs = SoftLabels.from_logits(np.arange(7), np.zeros((7, 5))).log_probs
    assert CODECS[name].size(7, 5) == len(CODECS[name].encode(log_probs)) == ROWS[name][0]


@pytest.mark.parametrize("name", sorted(ROWS))
@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b""])
def test_a_payload_of_another_length_is_refused(name, change):
    payload = CODECS[name].encode(np.full((7, 5), np.log(0.2), np.float32))
    with pytest.raises(ValueError, match="payload has"):
        CODECS[name].decode(change(payload), 7, 5)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_uniform_rows_are_within_the_float16_tolerance(classes):
    # The worst case of rounding: every entry is off in the same direction.
    decoded = CODECS["float16"].decode(
        CODECS["float16"].encode(np.full((1, classes), -np.log(classes), np.float32)), 1, classes
    )
    assert abs(np.exp(decoded.astype(np.float64)).sum() - 1) <= CODECS["float16"].sum_tolerance(classes)


def test_an_unknown_codec_lists_the_known_ones():
    with pytest.raises(KeyError, match="float16, float32"):
        codec_named("float8")
