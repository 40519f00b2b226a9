"""The entropy coder: near the entropy, never above its stated bound, one payload a message, nothing else decodes."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.codecs.bits import to_bits, to_bytes
from strategies.codecs.entropy import _LOG2, compress, expand, frequencies

ONE = np.array([0])


def message(counts, seed=0):
    """[n, 1] symbols with exactly these counts, shuffled."""
    symbols = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    return np.random.default_rng(seed).permutation(symbols)[:, None]


def entropy_bytes(counts):
    """Order-0 entropy of the whole message, by its definition."""
    shares = np.array([count for count in counts if count]) / sum(counts)
    return -sum(counts) * float((shares * np.log2(shares)).sum()) / 8


def bits(*fields):
    """Bytes of (number, width) fields."""
    return to_bytes(np.concatenate([to_bits(np.array([number], np.uint64), width) for number, width in fields]))


# 5.6, 1,000 symbols: near uniform over 10, 60/20/10 % and 7 rare, one 90 %: 418, 230 and 98 bytes without header.
# A table here: 3 bits of modes, 10 bits of used ones, 4 + 4 bits, 9 frequencies of as many bits as the second needs.
@pytest.mark.parametrize(
    ("counts", "frequency_bits"),
    [
        ([95, 105, 100, 100, 98, 102, 110, 90, 104, 96], 7),
        ([600, 200, 100, 14, 14, 14, 14, 14, 15, 15], 8),
        ([900, 12, 11, 11, 11, 11, 11, 11, 11, 11], 4),
    ],
)
def test_the_size_is_the_entropy_a_tiny_table_and_four_bytes(counts, frequency_bits):
    size = len(compress(message(counts), np.array([10]), ONE))
    least = entropy_bytes(counts) + (3 + 10 + 4 + 4 + 9 * frequency_bits) / 8
    # The first symbol into an empty state takes the 24 bits of the coder's precision; then the filling of two bytes.
    assert least <= size <= least + 4.5


def test_a_5_percent_change_of_labels_costs_a_tenth_of_the_labels():
    labels = compress(message([100] * 10), np.array([10]), ONE)
    changes = compress(message([950, 6, 6, 6, 6, 6, 5, 5, 5, 5]), np.array([10]), ONE)
    # 415 + 11 bytes of entropy and table; 56.1 + 6 bytes, .286 + .05 log2 9 bits a row
    assert 426 <= len(labels) <= 430
    assert 61 <= len(changes) <= 66


@pytest.mark.parametrize("n", [2, 1000, 10**5])
@pytest.mark.parametrize("alphabet", [2, 10, 256])
def test_a_constant_group_costs_two_bytes(n, alphabet):
    # 1 + 2 + 8 bits; one byte where the symbols themselves have no more
    payload = compress(np.full((n, 3), alphabet - 1, np.uint8), np.full(3, alphabet), np.zeros(3, int))
    assert len(payload) <= 2
    assert (expand(payload, n, np.full(3, alphabet), np.zeros(3, int)) == alphabet - 1).all()


def test_groups_have_tables_of_their_own():
    # a constant column, a skewed one and noise: mixing them would cost more than the noise alone
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, 1000).astype(np.uint8)
    symbols = np.stack([np.full(1000, 7, np.uint8), message([900, 50, 50])[:, 0], noise], axis=1)
    alphabets, groups = np.full(3, 256), np.arange(3)
    assert len(compress(symbols, alphabets, groups)) <= 1000 + entropy_bytes([900, 50, 50]) + 45
    assert len(compress(symbols, alphabets, np.zeros(3, int))) > len(compress(symbols, alphabets, groups))


def plain_bytes(n, alphabets):
    """What [n, width] symbols take in as many bits as their columns need."""
    return n * sum(int(count - 1).bit_length() for count in alphabets) / 8


def test_what_does_not_shrink_costs_three_bits():
    noise = np.random.default_rng(2).integers(0, 256, (100, 3)).astype(np.uint8)
    assert len(compress(noise, np.full(3, 256), np.zeros(3, int))) == 301


columns = st.lists(st.tuples(st.integers(2, 256), st.integers(0, 2)), min_size=1, max_size=5)


@given(columns=columns, n=st.integers(0, 300), skew=st.sampled_from([0.02, 0.3, 1.0]), seed=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_symbols_come_back_and_take_little_more_than_their_bits(columns, n, skew, seed):
    alphabets, groups = np.array(columns).T
    symbols = (np.random.default_rng(seed).random((n, len(columns))) ** (1 / skew) * alphabets).astype(np.uint8)
    payload = compress(symbols, alphabets, groups)
    # A mode for each of three groups at most, and the coder's state.
    assert len(payload) <= plain_bytes(n, alphabets) + 6
    back = expand(payload, n, alphabets, groups)
    assert back.dtype == np.uint8
    assert (back == symbols).all()


@given(columns=columns, n=st.integers(0, 50), skew=st.sampled_from([0.05, 1.0]), seed=st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_no_other_bytes_pass_for_a_message(columns, n, skew, seed):
    alphabets, groups = np.array(columns).T
    rng = np.random.default_rng(seed)
    symbols = (rng.random((n, len(columns))) ** (1 / skew) * alphabets).astype(np.uint8)
    payload = compress(symbols, alphabets, groups)
    flipped = bytearray(payload)
    flipped[rng.integers(len(payload))] ^= 1 << rng.integers(8)
    noise = rng.bytes(int(rng.integers(1, plain_bytes(n, alphabets) + 2)))
    for hostile in (payload[:-1], payload + b"\0", bytes(flipped), noise, bytes([noise[0] | 128]) + noise[1:]):
        try:
            other = expand(hostile, n, alphabets, groups)
        except ValueError:
            continue
        assert (other < alphabets).all()
        assert compress(other, alphabets, groups) == hostile


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_a_truncated_message_is_refused(cut):
    payload = compress(message([900, 50, 30, 20]), np.array([4]), ONE)
    with pytest.raises(ValueError, match=r"bits are left|ANS state|not what their symbols"):
        expand(payload[:cut], 1000, np.array([4]), ONE)


# 40 rows of one column with 8 symbols
@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "1 numbers of 1 bits where 0 bits are left"),
        (bytes(17), "begin with a bit that is 0"),
        (bits((1, 1), (0, 2), (5, 3)), "40 numbers of 3 bits where 5 bits"),
        (bits((1, 1), (3, 2)), "mode 3 of a group is not known"),
        (bits((1, 1), (2, 2), (0b10000000, 8), (0, 3), (0, 4)), "a table needs two symbols"),
        (bits((1, 1), (2, 2), (0b11000000, 8), (2, 3), (0, 4)), "the commonest one among them"),
        (bits((1, 1), (2, 2), (0b11000000, 8), (0, 3), (6, 4), (39, 6)), "frequencies of a table sum to more than 40"),
        (bits((1, 1), (1, 2), (5, 3), (1, 2)), "fill up a byte must be zero"),
        (bits((1, 1), (1, 2), (5, 3)) + b"\1\0", "ANS state ends in a zero byte"),
        # a state that nobody asked for; the same constant the long way; a frequency in more bits than it needs
        (bits((1, 1), (1, 2), (5, 3)) + b"\1", "not what their symbols"),
        (bits((1, 1), (0, 2), *[(5, 3)] * 40), "not what their symbols"),
        (bits((1, 1), (2, 2), (0b11000000, 8), (0, 3), (3, 4), (0, 3)) + b"\7", "not what their symbols"),
    ],
)
def test_malformed_bytes_are_refused(payload, why):
    with pytest.raises(ValueError, match=why):
        expand(payload, 40, np.array([8]), ONE)


def test_a_symbol_beyond_its_own_column_is_refused():
    # one group with alphabets 2 and 8: the constant 5 is one of the group's but not of the first column's
    alphabets, groups = np.array([2, 8]), np.array([0, 0])
    payload = compress(np.full((40, 2), 5, np.uint8), np.array([8, 8]), groups)
    with pytest.raises(ValueError, match="not what their symbols"):
        expand(payload, 40, alphabets, groups)


# plain, constant, a table of noise, one of the symbols 7 and 0 that leads to the state, an unknown mode
@pytest.mark.parametrize(
    "head",
    [
        [(1, 1), (0, 2)],
        [(1, 1), (1, 2), (9, 8)],
        [(1, 1), (2, 2)],
        [(1, 1), (2, 2), (0x81 << 56, 64), *[(0, 64)] * 3, (0, 8), (11, 4), (2000, 11)],
        [(1, 1), (3, 2)],
    ],
)
def test_memory_is_bounded_by_what_was_asked_and_not_by_the_payload(head):
    rows, width = 20_000, 10
    payload = bits(*head) + np.random.default_rng(0).bytes(150_000)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bits are left|table|these bytes|mode 3"):
        expand(payload, rows, np.full(width, 256), np.zeros(width, int))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * rows * width


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=256))
def test_frequencies_are_the_counts_or_sum_to_4096(counts):
    counts = np.array(counts)
    scaled = frequencies(counts)
    assert scaled.sum() == min(counts.sum(), 4096)
    assert scaled.min() >= 1
    shares = counts * (scaled.sum() / counts.sum())
    assert (scaled < np.maximum(shares, 0.999) + 1).all()
    # what is given to the rare ones, 255 units at most, is taken from the others in proportion
    assert (scaled > shares * (1 - 255 / 4096) - 1).all()
    ordered = np.lexsort((scaled, counts))
    assert (np.diff(scaled[ordered]) >= 0).all()


def test_scaling_to_4096_costs_less_than_a_percent():
    counts = [95_000, 3000, 1000, *[20] * 50]
    # the table: 256 + 8 + 4 + 3 bits, 52 frequencies of 7 bits
    assert len(compress(message(counts), np.array([256]), ONE)) <= 1.01 * entropy_bytes(counts) + 80


def test_the_choice_of_modes_is_the_same_on_every_machine():
    # No logarithm in the table is so near to the middle of two units that another libm could round it otherwise.
    exact = np.log2(np.arange(1, 4097)) * 2**16
    assert np.abs(exact % 1 - 0.5).min() > 1e-6
    assert np.abs(exact - _LOG2).max() <= 0.5


def test_the_bytes_stay_what_they_were():
    # Format and constriction's model are both pinned by this; a change of either is a new version of the wire.
    symbols = message([60, 20, 10, 4, 3, 2, 1, 0], seed=3)
    two = np.concatenate([symbols, symbols[::-1]], axis=1)
    assert compress(two, np.array([8, 8]), np.array([0, 1])).hex() == GOLDEN


GOLDEN = (
    "dfc166918820bf82cd231040bb770abe6d198f8761ee0a2bed8616666818892cad619c36d8cac5aa9573c4e3fc242b93fbb2b075bd93cd5a"
    "d12e09"
)
