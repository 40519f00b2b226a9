"""The right to give one answer: paid for before a private row is touched, sealed before it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from client.promise import Promise
from privacy.ledger import BudgetExceeded, Head, Ledger, LedgerError, ReleaseLost, Request, Sealed, Terms, Token
from privacy.policy import PolicyError
from strategies.messages import LedgerHead, RoundPlan

# An attempt more for each time that the process died; a site that dies more often has another problem.
_MOST_ATTEMPTS = 100


class Account:
    """One site's ledger, while one plan is answered.

    Args:
        ledger: open.
        promise: what each record is promised.
        pay_again: whether an answer that was paid for and lost is paid for once more, or its round is skipped.
    """

    def __init__(self, ledger: Ledger, promise: Promise, client: str, *, pay_again: bool) -> None:
        self._ledger, self._promise, self._client, self._pay_again = ledger, promise, client, pay_again
        self._token: Token | None = None
        self._head: Head | None = None

    def check(self, told: LedgerHead | None) -> None:
        """Compare the coordinator's echo with the chain here.

        Raises:
            LedgerRolledBack: this is not the ledger that it was told of.
        """
        if told is not None:
            self._ledger.check(told.seq, told.digest)

    def spend(self, plan: RoundPlan, plan_sha256: str, *, first: bool) -> bytes | None:
        """Pay for the answer to a plan.

        Args:
            first: whether it is the first answer of its run.

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
            return None
        raise BudgetExceeded(f"round {plan.round} was paid for {_MOST_ATTEMPTS} times and never answered: find out why")

    @property
    def spent(self) -> str:
        """What pays for this answer, as the site's state keeps it: number and key of a row."""
        return "" if self._token is None else f"{self._token.seq}:{self._token.key.hex()}"

    def settle(self, spent: str, answer: bytes) -> None:
        """Seal an answer that the site's state kept, if the process died before it was sealed.

        Args:
            spent: what paid for it, as `spent` said then; "" where nothing did.

        Raises:
            LedgerError: it could not be kept, or this is not the ledger that paid for it.
        """
        seq, _, key = spent.partition(":")
        token = self._ledger.unsealed(int(seq), bytes.fromhex(key)) if spent else None
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


class Book:
    """A site's ledger, found or made when the first answer needs it.

    Args:
        path: of the file.
        promise: what each record is promised.
        client: the site's name.
        pay_again: see Account.
        durable: whether it must survive a power cut.
    """

    def __init__(self, path: Path, promise: Promise, client: str, *, pay_again: bool, durable: bool) -> None:
        self._path, self._promise, self._client = path, promise, client
        self._pay_again, self._durable = pay_again, durable
        self._ledger: Ledger | None = None

    @contextmanager
    def opened(self) -> Iterator[Account]:
        """The account for one answer; the file is closed in between.

        Raises:
            PolicyError: the ledger refused, with the code that may leave.
        """
        try:
            if self._ledger is None:
                self._ledger = Ledger.open_or_create(self._path, self._terms(), durable=self._durable)
            with self._ledger as ledger:
                yield Account(ledger, self._promise, self._client, pay_again=self._pay_again)
        except LedgerError as error:
            self._ledger = None
            raise PolicyError(error.code, str(error)) from error

    def _terms(self) -> Terms:
        """The promise's terms; what was computed for them when the ledger was made is not computed again."""
        terms = self._promise.terms()
        if not self._path.exists():
            return terms
        with Ledger.open(self._path, durable=False) as ledger:
            made = ledger.terms
        if terms.mode == made.mode == "filter":
            terms = replace(terms, order=made.order)
        return terms if self._promise.epsilon_given or made.epsilon is None else replace(terms, epsilon=made.epsilon)
