"""How a ledger says no: a code that may leave the site, and a sentence that stays."""

from __future__ import annotations

from typing import ClassVar


class LedgerError(Exception):
    """The ledger says no.

    Attributes:
        code: what may leave the site; the message stays.
    """

    code: ClassVar[str] = "internal_error"


class LedgerBroken(LedgerError):
    """The file is there and its rows do not hold together."""

    code: ClassVar[str] = "storage_error"


class LedgerUnavailable(LedgerError, OSError):
    """The disk or another process is in the way; nothing is known to be wrong with the rows."""

    code: ClassVar[str] = "storage_error"


class LedgerRolledBack(LedgerError):
    """The rows are not those that were shown or read before: a copy was put back, or rows were taken off."""

    code: ClassVar[str] = "ledger_rolled_back"


class BudgetExceeded(LedgerError):
    """It does not fit what is left, now or later; nothing was spent."""

    code: ClassVar[str] = "budget_out"


class KeyConflict(LedgerError):
    """Something else was paid for under this name."""

    code: ClassVar[str] = "conflicting_plan"


class ReleaseLost(LedgerError):
    """It was paid for and its bytes were never stored: fresh noise under the same name would be a second release."""

    code: ClassVar[str] = "release_lost"


class StaleRelease(LedgerError):
    """Its bytes were stored, and are too old to be kept."""

    code: ClassVar[str] = "stale_round"


class TokenRefused(LedgerError):
    """There is no open release that this token stands for."""


class TermsDiffer(LedgerError):
    """The ledger was made for other terms."""
