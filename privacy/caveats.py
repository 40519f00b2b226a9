"""What an epsilon rests on and what it does not cover, in words that stand beside it in every statement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

# How the settings of a training were chosen: nobody said; on public data or none; at a cost that the ledger has, too.
Tuning = Literal["unpaid", "public", "paid"]

_FLOAT = "float, not exact-discrete"
_NOISE = {
    "client-sum-distributed": "discrete Gaussian integers, charged as normal noise, right to within 0.4 %",
    "k-rr": "discrete, labels drawn by 53-bit numbers",
}


def noise_of(mechanisms: Sequence[str]) -> str:
    """Kind of arithmetic of these mechanisms' noise; of none yet, what most have."""
    return "; ".join(dict.fromkeys(_NOISE.get(name, _FLOAT) for name in mechanisms)) or _FLOAT


def caveats_of(mechanism: str, parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """What must be so for a mechanism's promise to hold, beyond what its site does itself.

    Args:
        parameters: of the mechanism, as a ledger has them: floats as float.hex().
    """
    if mechanism == "client-sum":
        return ("holds against everybody but the coordinator, which sees all votes",)
    if mechanism != "client-sum-distributed":
        return ()
    from privacy.mechanisms.distributed_sum import DistributedClientSum

    known = [field.name for field in fields(DistributedClientSum) if field.name in parameters]
    split = DistributedClientSum(**{name: _number(parameters[name]) for name in known})
    collude = f"at most {split.least - split.honest} of these" if split.least > split.honest else "none of these"
    return (
        f"holds if the coordinator follows the protocol, at least {split.least} of {split.clients} sites add noise and "
        f"{collude} collude",
    )


def _number(told: Any) -> Any:
    return float.fromhex(told) if isinstance(told, str) else told


def not_covered(unit: str, group_size: int, mechanisms: Sequence[str], tuning: str, unpaid: int) -> tuple[str, ...]:
    """What no part of a statement promises (design reference 2.3 and 12).

    Args:
        unit: "record", "patient" or "client".
        group_size: records that one epsilon covers together.
        mechanisms: of the releases.
        tuning: see Tuning.
        unpaid: answers before the first one that was paid for.
    """
    return tuple(_not_covered(unit, group_size, _FLOAT in noise_of(mechanisms), tuning, unpaid))


def _not_covered(unit: str, group_size: int, floats: bool, tuning: str, unpaid: int) -> Iterator[str]:
    if unpaid:
        yield f"{_answers(unpaid)} given before the first one that was paid for"
    if unit != "client":
        yield "the distribution of labels and other properties of a whole site"
    if unit == "record":
        yield "several rows of one person" if group_size == 1 else f"more than {group_size} rows of one person"
    yield "records that another site holds, too"
    yield "who took part and when, how long an answer took, and other side channels"
    yield "whether a site could read its file of private rows at all"
    if floats:
        yield "attacks on noise in floating-point numbers"
    yield "a site's state and its ledger put back to an earlier day together"
    if tuning == "unpaid":
        yield "how these settings were chosen: nobody says that it was on public data"


def incomplete(unpaid: int) -> str:
    """What a sentence begins with where something left before anything was paid for; else "".

    >>> incomplete(0), incomplete(1)
    ('', 'INCOMPLETE, 1 answer was given before without a promise: ')
    """
    was = "was" if unpaid == 1 else "were"
    return f"INCOMPLETE, {_answers(unpaid)} {was} given before without a promise: " if unpaid else ""


def _answers(count: int) -> str:
    return f"{count} answer{'' if count == 1 else 's'}"
