"""t shares tell the secret and t - 1 fit every secret; compared with elimination on the same equations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.noise import SeededEntropy
from privacy.secure_sum.shares import PRIME, combined, split, weights

secrets = st.binary(min_size=32, max_size=32)


def passes_fermat(number, bases):
    return all(pow(base, number - 1, number) == 1 for base in bases)


def eliminated(points, values):
    """The constant of the polynomial through the points, by Gaussian elimination on powers of the points."""
    rows = [
        [pow(point, power, PRIME) for power in range(len(points))] + [value]
        for point, value in zip(points, values, strict=True)
    ]
    for column in range(len(rows)):
        pivot = next(row for row in rows[column:] if row[column])
        rows.remove(pivot)
        scale = pow(pivot[column], PRIME - 2, PRIME)
        rows.insert(column, [entry * scale % PRIME for entry in pivot])
        for place, row in enumerate(rows):
            if place != column:
                rows[place] = [(a - row[column] * b) % PRIME for a, b in zip(row, rows[column], strict=True)]
    return rows[0][-1]


def test_the_modulus_is_the_first_prime_above_two_to_the_256():
    assert passes_fermat(PRIME, range(2, 60))
    assert not any(passes_fermat(number, [2, 3, 5]) for number in range(2**256 + 1, PRIME, 2))


def test_a_line_by_hand():
    # Entropy of 7 makes the slope 7; the secret 5: values 5 + 7x at 1, 2 and 9.
    class Seven:
        private = False

        def bytes(self, count):
            return (7).to_bytes(count, "big")

    assert split((5).to_bytes(32, "big"), 2, [1, 2, 9], Seven()) == [12, 19, 68]
    # 2 * 12 - 19 = 5; through 1 and 9: (9 * 12 - 68) / 8 = 5.
    assert combined([12, 19], weights([1, 2])) == (5).to_bytes(32, "big")
    assert combined([12, 68], weights([1, 9])) == (5).to_bytes(32, "big")


@settings(max_examples=50, deadline=None)
@given(secret=secrets, count=st.integers(1, 9), data=st.data())
def test_any_t_shares_tell_the_secret_as_elimination_does(secret, count, data):
    threshold = data.draw(st.integers(1, count))
    points = data.draw(st.lists(st.integers(1, 10_000), min_size=count, max_size=count, unique=True))
    values = split(secret, threshold, points, SeededEntropy(1, secret.hex()))
    chosen = data.draw(st.permutations(range(count)))[:threshold]
    at, told = [points[place] for place in chosen], [values[place] for place in chosen]
    assert combined(told, weights(at)) == secret
    assert eliminated(at, told).to_bytes(32, "big") == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_the_smallest_and_the_largest_secret_are_shared_exactly(secret):
    values = split(secret, 3, [1, 2, 3, 4], SeededEntropy(2))
    assert combined(values[1:], weights([2, 3, 4])) == secret


@settings(max_examples=25, deadline=None)
@given(secret=secrets, other=secrets)
def test_t_minus_one_shares_fit_every_secret(secret, other):
    known = split(secret, 3, [1, 2, 3], SeededEntropy(3))[:2]
    # The third share that makes them shares of `other`: solve other = w1 v1 + w2 v2 + w3 v3 for v3.
    factors = weights([1, 2, 3])
    rest = int.from_bytes(other, "big") - known[0] * factors[0] - known[1] * factors[1]
    third = rest * pow(factors[2], -1, PRIME) % PRIME
    assert combined([*known, third], factors) == other


def test_shares_of_equal_secrets_share_no_coefficient():
    entropy = SeededEntropy(4)
    first, second = (split(bytes(32), 3, [1, 2, 3], entropy) for _ in range(2))
    assert not set(first) & set(second)


def test_wrong_shares_are_noticed_where_they_make_no_32_bytes():
    # 297 of 2^256 + 297 numbers are none of a secret's; PRIME - 1 is one of them.
    with pytest.raises(ValueError, match="do not combine to 32 bytes"):
        combined([PRIME - 1], [1])


@pytest.mark.parametrize("points", [[1, 1], [0, 1], [1, PRIME], [-1, 1]])
def test_points_that_are_no_points_are_refused(points):
    with pytest.raises(ValueError, match="points must be distinct and in"):
        weights(points)
    with pytest.raises(ValueError, match="points must be distinct and in"):
        split(bytes(32), 2, points, SeededEntropy(5))


def test_secrets_and_thresholds_that_cannot_be_shared_are_refused():
    with pytest.raises(ValueError, match="a secret of 31 bytes cannot be shared: 32 are needed"):
        split(bytes(31), 1, [1], SeededEntropy(6))
    for threshold in (0, 3):
        with pytest.raises(ValueError, match=rf"threshold={threshold} must be in \[1, 2\]"):
            split(bytes(32), threshold, [1, 2], SeededEntropy(6))


def test_shares_of_many_clients_are_combined_from_any_of_them():
    points, secret = list(range(1, 101)), SeededEntropy(7).bytes(32)
    values = split(secret, 67, points, SeededEntropy(8))
    for seed in range(3):
        chosen = np.random.default_rng(seed).permutation(100)[:67].tolist()
        assert combined([values[at] for at in chosen], weights([points[at] for at in chosen])) == secret
