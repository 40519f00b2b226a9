"""Secrets split among clients so that any t of them tell it and t - 1 tell nothing.

Shamir (1979), How to share a secret. Whole numbers modulo a prime just above 2^256, so that 32 bytes are one number.
"""

from __future__ import annotations

from collections.abc import Sequence

from privacy.noise import Entropy

# The smallest prime above 2^256.
PRIME = 2**256 + 297
SECRET_BYTES, SHARE_BYTES = 32, 33
# 64 random bytes modulo the prime: at most 2^-255 away from uniform.
_DRAWN = 64


def split(secret: bytes, threshold: int, points: Sequence[int], entropy: Entropy) -> list[int]:
    """The values at `points` of a random polynomial of degree threshold - 1 that is `secret` at 0.

    Args:
        secret: 32 bytes.
        points: distinct, in [1, PRIME).

    Raises:
        ValueError: a secret of another length, a threshold outside [1, points], or points that are not distinct.

    Guarantees:
        Fewer than `threshold` values are independent of the secret, up to 2^-254 and to what the entropy is worth.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret of {len(secret)} bytes cannot be shared: {SECRET_BYTES} are needed")
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold={threshold} must be in [1, {len(points)}], the number of points")
    _check(points)
    drawn = entropy.bytes(_DRAWN * (threshold - 1))
    higher = [int.from_bytes(drawn[at : at + _DRAWN], "big") % PRIME for at in range(0, len(drawn), _DRAWN)]
    return [_at(point, int.from_bytes(secret, "big"), higher) for point in points]


def weights(points: Sequence[int]) -> list[int]:
    """Lagrange's factors: the polynomial's value at 0 is the sum of weight times value over `points`.

    Raises:
        ValueError: points that are not distinct or not in [1, PRIME).

    >>> weights([1, 2]) == [2, PRIME - 1]
    True
    """
    _check(points)
    return [_weight(point, points) for point in points]


def combined(values: Sequence[int], factors: Sequence[int]) -> bytes:
    """The 32 bytes that were split, from as many values as the threshold was and the factors of their points.

    Raises:
        ValueError: the values are not those of shares of 32 bytes.
    """
    secret = sum(value * factor for value, factor in zip(values, factors, strict=True)) % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise ValueError("these shares do not combine to 32 bytes")
    return secret.to_bytes(SECRET_BYTES, "big")


def _at(point: int, constant: int, higher: Sequence[int]) -> int:
    value = 0
    for coefficient in reversed(higher):
        value = (value + coefficient) * point % PRIME
    return (value + constant) % PRIME


def _weight(point: int, points: Sequence[int]) -> int:
    above, below = 1, 1
    for other in points:
        if other != point:
            above = above * other % PRIME
            below = below * (other - point) % PRIME
    return above * pow(below, -1, PRIME) % PRIME


def _check(points: Sequence[int]) -> None:
    if len(set(points)) != len(points) or not all(1 <= point < PRIME for point in points):
        raise ValueError("points must be distinct and in [1, PRIME): at 0 stands the secret itself")
