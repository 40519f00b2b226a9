"""Noise is what it says: the right law, fresh where it must be, and reproducible only where that is said."""

import numpy as np
import pytest
from scipy.stats import kstest

from privacy.noise import Draw, OsEntropy, SeededEntropy


class Given:
    """Bytes that the test chooses."""

    private = False

    def __init__(self, words):
        self.words = np.array(words, "<u8").tobytes()

    def bytes(self, count):
        assert count == len(self.words)
        return self.words


def test_uniform_numbers_are_the_middles_of_equal_cells_and_never_zero_or_one():
    # The top 52 bits count cells: none set, all set, only the highest.
    drawn = Draw(Given([0, 2**64 - 1, 2**63])).uniform((3,))
    assert drawn.tolist() == [2.0**-53, 1.0 - 2.0**-53, 0.5 + 2.0**-53]
    assert np.isfinite(Draw(Given([0, 2**64 - 1])).normal((2,))).all()


@pytest.mark.parametrize("entropy", [OsEntropy(), SeededEntropy(1, "noise")])
def test_normal_numbers_are_normal(entropy):
    drawn = Draw(entropy).normal((100, 200)).ravel()
    assert kstest(drawn, "norm").pvalue > 1e-6
    assert abs((drawn**2).sum() - 20_000) < 5 * np.sqrt(2 * 20_000)  # chi-square with 20,000 degrees of freedom


def test_only_the_operating_system_is_private():
    assert OsEntropy().private
    assert not SeededEntropy(1).private
    assert OsEntropy().bytes(32) != OsEntropy().bytes(32)


def test_a_seeded_stream_repeats_and_goes_on():
    first, second = SeededEntropy(7, "client-1", 3), SeededEntropy(7, "client-1", 3)
    assert [first.bytes(8), first.bytes(8)] == [second.bytes(8), second.bytes(8)]
    assert len({first.bytes(8) for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "other",
    [
        (7, "client-1", 4),
        (7, "client-2", 3),
        (8, "client-1", 3),
        (7 + 2**32, "client-1", 3),
        (7 + 2**40, "client-1", 3),
        (7, "client-1", "3"),
        (7, "client-1\x003"),
        (7, "client-1"),
    ],
)
def test_streams_that_differ_in_one_name_or_one_bit_of_the_seed_share_no_noise(other):
    mine, theirs = (
        Draw(SeededEntropy(7, "client-1", 3)).normal((10_000,)),
        Draw(SeededEntropy(*other)).normal((10_000,)),
    )
    assert abs(np.corrcoef(mine, theirs)[0, 1]) < 5 / np.sqrt(10_000)
