"""What a request gets that was paid for before: the same bytes, never the noise a second time."""

from __future__ import annotations

from privacy.chain import Chain
from privacy.events import Events
from privacy.ledger_errors import KeyConflict, ReleaseLost
from privacy.tally import Release, counted
from privacy.terms import Request, Sealed, Token


def again(
    chain: Chain, known: Release, request: Request, key: bytes, events: Events, *, seeded: bool
) -> Token | Sealed:
    """The answer to a release that was paid for before.

    Args:
        seeded: there a release is a function of its request, and a lost one is computed again.

    Raises:
        KeyConflict: with other contents.
        ReleaseLost: its bytes were never stored.
        StaleRelease, LedgerBroken: they are not kept any more, or are others.
    """
    name = f"round {request.round} of run {request.run!r}, attempt {request.attempt}"
    if (known.key, counted(known.events)) != (key, counted(events)):
        raise KeyConflict(f"{name} was paid for in row {known.seq} with other contents: ask in a new round")
    if known.sealed:
        return Sealed(known.sealed, chain.payload(known.sealed, known.sha256))
    if seeded:
        return Token(known.seq, key, known.events)
    raise ReleaseLost(
        f"{name} was paid for in row {known.seq}, and the process died before its bytes were stored: skip the "
        f"round, or pay again as attempt {request.attempt + 1}"
    )
