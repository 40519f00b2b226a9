"""A site's ledger among its files: which one it is, whose child, and that no second one begins in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from client.account import Account
from client.config import PrivacySection, SiteConfig, SiteConfigError
from client.marker import Marker
from client.promise import Promise
from privacy.ledger import Ledger, LedgerError, LedgerRolledBack, Terms, TermsDiffer
from privacy.policy import PolicyError


class Book:
    """A site's ledger, found or made when the first answer needs it.

    Args:
        section: the site's [privacy].
        promise: what each record is promised.
        client: the site's name.
        folder: that the section's paths start from.
        marker: beside the private rows.
        durable: whether it must survive a power cut.
    """

    def __init__(
        self, section: PrivacySection, promise: Promise, client: str, folder: Path, marker: Marker, *, durable: bool
    ) -> None:
        self._path, self._parent = folder / section.ledger, folder / section.parent if section.parent else None
        self._section, self._promise, self._client = section, promise, client
        self._marker, self._durable = marker, durable
        # Closed between answers; what it has read it keeps.
        self._ledger: Ledger | None = None
        self._insisted = False

    @classmethod
    def of(cls, config: SiteConfig, promise: Promise | None, folder: Path, *, durable: bool) -> Book | None:
        """The book of a site's file, checked; None where nothing is promised.

        Raises:
            SiteConfigError: another ledger than the one that the rows have paid into, or none any more.
        """
        told = "" if config.privacy is None else config.privacy.ledger
        marker = Marker.of(folder / config.private, told, durable=durable)
        if config.privacy is None:
            marker.check_absent()
        if config.privacy is None or promise is None:
            return None
        book = cls(config.privacy, promise, config.site, folder, marker, durable=durable)
        book.check()
        return book

    def check(self) -> None:
        """Return if no other ledger than this one has been paid into, as far as the files say.

        A ledger that cannot be read is no reason here: each answer says so, by the code of what is wrong with it.

        Raises:
            SiteConfigError: another one has; or the ledger is not its parent's child.
        """
        if self._parent is not None and not self._parent.is_file():
            raise SiteConfigError(
                f"privacy.parent={self._section.parent!r} is not there: put it back; what the ledger "
                f"{self._section.ledger!r} has inherited, or must inherit, stands in it"
            )
        if self._parent is None and not self._marker.data_set():
            return
        try:
            lineage = self._lineage()
        except TermsDiffer as error:
            raise SiteConfigError(f"privacy.parent={self._section.parent!r}: {error}") from None
        except LedgerError:
            return
        self._marker.check(lineage)

    @contextmanager
    def opened(self, paid_by: str, counted: int) -> Iterator[Account]:
        """The account for one answer; the file is closed in between.

        Args:
            paid_by: data set whose ledger has paid for what the site's state holds; "" where none has.
            counted: plans that the state says private rows were touched for.

        Raises:
            PolicyError: the ledger refused, with the code that may leave.
        """
        try:
            if not self._path.exists():  # before another one is made
                self._recognise(self._lineage(), paid_by)
            with self._found(0 if paid_by else counted) as ledger:
                self._recognise(ledger.lineage, paid_by)
                if not paid_by and counted > ledger.unpaid_before:
                    raise TermsDiffer(
                        f"this site has answered {counted} plans without [privacy] and its ledger {self._path} knows "
                        f"of {ledger.unpaid_before}: name a ledger that does not exist yet, with this one as `parent`"
                    )
                again = self._section.lost == "pay-again"
                yield Account(ledger, self._promise, self._client, self._marker, self._parent, pay_again=again)
        except LedgerError as error:
            self._ledger = None
            raise PolicyError(error.code, str(error)) from error

    def _recognise(self, lineage: tuple[str, ...], paid_by: str) -> None:
        """Return if marker and state know this ledger, or one that it goes on from.

        Raises:
            LedgerRolledBack: it is another one.
        """
        try:
            self._marker.check(lineage)
        except SiteConfigError as error:
            raise LedgerRolledBack(str(error)) from None
        if paid_by and paid_by not in lineage:
            raise LedgerRolledBack(
                f"this site's state was paid for by the ledger of data set {paid_by}, and {self._path} is not that one "
                "and does not go on from it: put it back"
            )

    def _lineage(self) -> tuple[str, ...]:
        """Of the ledger, which must be its parent's child; of the parent, where it is not made yet; () without both."""
        if (ledger := self._existing()) is not None:
            with ledger:
                ledger.insist(ledger.terms, self._parent)
                return ledger.lineage
        parent = self._opened_parent()
        return () if parent is None else parent.lineage

    def _existing(self) -> Ledger | None:
        if self._ledger is None and self._path.exists():
            self._ledger, self._insisted = Ledger.open(self._path, durable=self._durable), False
            self._ledger.close()
        return self._ledger

    def _opened_parent(self) -> Ledger | None:
        """What the parent says, closed again; None without one."""
        if self._parent is None:
            return None
        with Ledger.open(self._parent, durable=self._durable) as parent:
            return parent

    def _found(self, unpaid: int) -> Ledger:
        """The ledger, open, made for this promise; `unpaid` counts where it is made now."""
        ledger = self._existing()
        if ledger is None:
            parent = self._opened_parent()
            terms = terms_of(self._promise, None if parent is None else parent.terms)
            self._ledger = ledger = Ledger.open_or_create(
                self._path, terms, parent=self._parent, unpaid_before=unpaid, durable=self._durable
            )
        elif not self._insisted:
            with ledger:
                ledger.insist(terms_of(self._promise, ledger.terms), self._parent)
        self._insisted = True
        return ledger


def terms_of(promise: Promise, made: Terms | None) -> Terms:
    """The promise's terms; what was computed for them when its ledger was made is not computed again."""
    terms = promise.terms()
    if made is None:
        return terms
    if terms.mode == made.mode == "filter":
        terms = replace(terms, order=made.order)
    return terms if promise.epsilon_given or made.epsilon is None else replace(terms, epsilon=made.epsilon)
