"""One data set after another: what a ledger insists on, to whom it was handed on, and whose child it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from privacy.chain import made_with
from privacy.ledger_errors import BudgetExceeded, TermsDiffer
from privacy.tally import Tally
from privacy.terms import Terms


def first_row(data_set: str, terms: Terms, parent: dict[str, Any] | None, unpaid_before: int) -> dict[str, Any]:
    """What an OPEN row says.

    Args:
        parent: what `parent_row` said of it; None for data of its own.
        unpaid_before: answers that this data set gave before, and that no ledger has paid for.
    """
    told = {"data_set": data_set, "terms": terms.plain(), "parent": parent, "made_with": made_with()}
    return {**told, "unpaid_before": unpaid_before}


def parent_row(tally: Tally, answered: int) -> dict[str, Any]:
    """What a child's first row says of the ledger that it was handed on from."""
    head = tally.head
    told = {"data_set": tally.data_set, "seq": head.seq, "head": head.digest.hex(), "answered": answered}
    return {**told, "lineage": list(tally.lineage)}


def insist_on(path: Path, made: Terms, asked: Terms) -> None:
    """Return if a ledger's terms are those that it is asked for.

    Raises:
        TermsDiffer: they are others.
    """
    if asked != made:
        raise TermsDiffer(
            f"the ledger {path} was made with {made.beside(asked)}: what was released cannot be charged afterwards; "
            "keep its terms, or let other data begin a ledger of its own"
        )


def insist_on_parent(path: Path, tally: Tally, parent: Path, of: Tally) -> None:
    """Return if a ledger is the child that its parent was closed for.

    Raises:
        TermsDiffer: it is not.
    """
    if tally.parent != of.data_set or of.child != tally.data_set:
        raise TermsDiffer(
            f"the ledger {path} was not made from {parent}, and what that one has spent is not in it: name a ledger "
            "that does not exist yet, which then begins with it, or take `parent` out if they share no record"
        )


def refuse_if_closed(path: Path, tally: Tally) -> None:
    """Return if a ledger still answers.

    Raises:
        BudgetExceeded: its data set was handed on.
    """
    if tally.child:
        raise BudgetExceeded(
            f"the ledger {path} was handed on to data set {tally.child}: that one answers instead, name its ledger"
        )
