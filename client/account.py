"""The right to give one answer: paid for before a private row is touched, sealed before it leaves."""

from __future__ import annotations

from pathlib import Path

from client.marker import Marker
from client.promise import Promise
from privacy.ledger import BudgetExceeded, Head, Ledger, LedgerRolledBack, ReleaseLost, Request, Sealed, Token
from strategies.messages import LedgerHead, RoundPlan

# An attempt more for each time that the process died; a site that dies more often has another problem.
_MOST_ATTEMPTS = 100


class Account:
    """One site's ledger, while one plan is answered.

    Args:
        ledger: open.
        promise: what each record is promised.
        client: the site's name.
        marker: says beside the private rows into which ledger they pay.
        parent: the ledger that this one was made from; None without one.
        pay_again: whether an answer that was paid for and lost is paid for once more, or its round is skipped.
    """

    def __init__(
        self, ledger: Ledger, promise: Promise, client: str, marker: Marker, parent: Path | None, *, pay_again: bool
    ) -> None:
        self._ledger, self._promise, self._client, self._pay_again = ledger, promise, client, pay_again
        self._marker, self._parent = marker, parent
        self._token: Token | None = None
        self._head: Head | None = None

    @property
    def data_set(self) -> str:
        """Whose ledger this is."""
        return self._ledger.data_set

    def check(self, told: LedgerHead | None) -> None:
        """Compare the coordinator's echo with the chain here, or with the one that it goes on from.

        Raises:
            LedgerRolledBack: this is not the ledger that it was told of.
        """
        if told is None:
            return
        try:
            self._ledger.check(told.seq, told.digest)
        except LedgerRolledBack:
            if self._parent is None:
                raise
            with Ledger.open(self._parent, durable=self._marker.durable) as parent:
                parent.check(told.seq, told.digest)

    def spend(self, plan: RoundPlan, plan_sha256: str, *, first: bool) -> bytes | None:
        """Pay for the answer to a plan.

        Args:
            first: whether the model begins anew for it: the first of its run, or the first under this promise.

        Returns:
            None once it is paid for; or the bytes that this plan was answered with before.

        Raises:
            LedgerError: it is not paid for, and its code says why.
        """
        promise = self._promise
        if self._ledger.terms.mode == "plan" and promise.total():
            self._ledger.plan(promise.plan_name, promise.total())
        for attempt in range(_MOST_ATTEMPTS if self._pay_again else 1):
            request = Request(
                plan.run, plan.round, attempt, self._client, promise.name, promise.parameters, plan_sha256
            )
            try:
                paid = self._ledger.reserve(
                    request, promise.answer(len(plan.ask_rows), first=first), plan=promise.plan_name
                )
            except ReleaseLost:
                if self._pay_again:
                    continue
                raise
            if isinstance(paid, Sealed):
                return paid.payload
            self._token, self._head = paid, self._ledger.head()
            self._marker.write(self.data_set, first=self._ledger.count() == 1)
            return None
        raise BudgetExceeded(f"round {plan.round} was paid for {_MOST_ATTEMPTS} times and never answered: find out why")

    @property
    def spent(self) -> str:
        """What pays for this answer, as the site's state keeps it: number and key of a row, and whose ledger."""
        return "" if self._token is None else f"{self._token.seq}:{self._token.key.hex()}:{self.data_set}"

    def settle(self, spent: str, answer: bytes) -> None:
        """Seal an answer that the site's state kept, if the process died before it was sealed.

        Args:
            spent: what paid for it, as `spent` said then; "" where nothing did.

        Raises:
            LedgerError: it could not be kept, or this is not the ledger that paid for it.
        """
        if not spent:
            return
        seq, key, data_set = spent.split(":")
        # What a parent paid for is its own to seal, and it is closed.
        token = self._ledger.unsealed(int(seq), bytes.fromhex(key)) if data_set == self.data_set else None
        if token is not None:
            self._ledger.store(token, answer)

    @property
    def head(self) -> LedgerHead | None:
        """Where the ledger stood when this answer was paid for; the answer says so."""
        return None if self._head is None else LedgerHead(self._head.seq, self._head.digest)

    def seal(self, answer: bytes) -> None:
        """Keep the answer that was paid for; it may leave from now on.

        Raises:
            LedgerError: it could not be kept.
        """
        if self._token is not None:
            self._ledger.store(self._token, answer)
            self._token = None
