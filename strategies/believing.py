"""From votes to what a link carries of them, and back to what is believed of that."""

from __future__ import annotations

import numpy as np

from strategies.codecs import Link, link_named
from strategies.envelope import WireError
from strategies.soft_labels import Float32, Int64, SoftLabels, UInt8

# What float32 may add: to a log-probability of 0, to the sum of a row.
_ROUNDING = 1e-6


def vote_symbols(votes: SoftLabels, spec: str) -> UInt8:
    """[n, width] what a link makes of votes, before any difference is taken."""
    return link_named(spec).codec.symbols(votes.log_probs, votes.rows)


def believe(rows: Int64, values: Float32, link: Link) -> SoftLabels:
    """Votes on `rows` as soft labels, if their values are those of distributions.

    A row that sums to 1 but for float32's rounding stays as it came, bit for bit; others are normalised.

    Raises:
        WireError: `shape`, `non_finite`, or `not_simplex`: a log-probability over 1e-6, or a sum that is further from 1
            than the codec's rounding explains. No codec rounds a logarithm to above 0.
    """
    if len(values) != len(rows):
        raise WireError("shape", f"{len(values)} rows of votes for {len(rows)} rows")
    if not np.isfinite(values).all():
        raise WireError("non_finite", "a vote is NaN or infinite")
    if values.max(initial=0.0) > _ROUNDING:
        raise WireError("not_simplex", f"a log-probability of {values.max():.3g} is above 0")
    sums = np.exp(values, dtype=np.float64).sum(axis=1)
    tolerance = link.codec.sum_tolerance(values.shape[1])
    worst = float(np.abs(sums - 1.0).max()) if len(sums) else 0.0
    if not worst <= tolerance:
        raise WireError("not_simplex", f"a row of probabilities is {worst:.3g} away from 1; {tolerance:.3g} is allowed")
    shifts = np.where(np.abs(sums - 1.0) <= _ROUNDING, 0.0, np.log(sums))
    return SoftLabels(rows, (values - shifts[:, None]).astype(np.float32))


def believe_symbols(rows: Int64, symbols: UInt8, spec: str, classes: int) -> SoftLabels:
    """What symbols mean, if they mean distributions.

    Raises:
        WireError: `malformed`, `non_finite` or `not_simplex`.
    """
    link = link_named(spec)
    try:
        values = link.codec.values(symbols, classes)
    except ValueError as error:
        raise WireError("malformed", str(error)) from error
    return believe(rows, values, link)


def decode_symbols(spec: str, payload: bytes, rows: int, classes: int) -> UInt8:
    """[rows, width] symbols of a payload.

    Raises:
        WireError: `malformed`.
    """
    try:
        return link_named(spec).decode(payload, rows, classes)
    except ValueError as error:
        raise WireError("malformed", str(error)) from error
