"""A file beside the private rows that says which ledger they pay into, so that no second one begins anew by mistake."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from client.config import SiteConfigError
from distillation.export import write_atomically

log = logging.getLogger("consilium.node")


@dataclass(frozen=True, slots=True)
class Marker:
    """What the rows' own folder says of their ledger; it never leaves.

    Attributes:
        path: of the marker: the private file's, with `.ledger` behind it.
        ledger: the ledger's file as the site's own file names it.
        durable: whether it must survive a power cut.

    Guarantees:
        It stands there before a row is touched for an answer that the ledger paid for, wherever the folder can be
        written. Who deletes it has decided that it does not count.
    """

    path: Path
    ledger: str
    durable: bool

    @classmethod
    def of(cls, private: Path, ledger: str, *, durable: bool) -> Marker:
        """The marker of a file of private rows."""
        return cls(private.with_name(f"{private.name}.ledger"), ledger, durable)

    def data_set(self) -> str:
        """Whose ledger the rows have paid into last; "" where nobody has said so.

        Raises:
            SiteConfigError: the file is there and does not say.
        """
        return self._told()[0]

    def check(self, lineage: tuple[str, ...]) -> None:
        """Return if a ledger is the one that these rows pay into, or goes on from it.

        Args:
            lineage: of the ledger, or of the parent that it will be made from; () where there is neither.

        Raises:
            SiteConfigError: it is another one.
        """
        data_set, ledger = self._told()
        if data_set and data_set not in lineage:
            found = f"goes on from data set {lineage[0]}" if lineage else "is not there"
            onward = f"; or, for a new one that begins with what it has spent, add privacy.parent={ledger!r}"
            raise SiteConfigError(
                f"privacy.ledger={self.ledger!r} {found}, and the private rows have paid into that of data set "
                f"{data_set}, {ledger!r}, as {self.path.name} says: put that one back"
                f"{onward if ledger != self.ledger else ''}"
            )

    def check_absent(self) -> None:
        """Return unless these rows have paid into a ledger: what a site without [privacy] must not go on from.

        Raises:
            SiteConfigError: they have.
        """
        if data_set := self.data_set():
            raise taken_out(data_set)

    def write(self, data_set: str, *, first: bool) -> None:
        """Say that the rows pay into this ledger from now on.

        Args:
            first: whether this is its first payment; only then is it said in the log that nothing guards it.
        """
        if self._told() == (data_set, self.ledger):
            return
        told = {"data_set": data_set, "ledger": self.ledger}
        try:
            write_atomically(self.path, (json.dumps(told, indent=1) + "\n").encode(), durable=self.durable)
        except OSError as error:
            if first:
                log.warning(
                    "%s cannot be written (%s): nothing guards these rows against a second ledger, which would promise "
                    "the whole budget once more",
                    self.path,
                    error.strerror,
                )

    def _told(self) -> tuple[str, str]:
        try:
            told = json.loads(self.path.read_bytes())
            return str(told["data_set"]), str(told["ledger"])
        except FileNotFoundError:
            return "", ""
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SiteConfigError(
                f"{self.path} cannot be read ({type(error).__name__}) and should say which ledger the private rows "
                "have paid into: restore it, or write there what `consilium budget` shows of that ledger, as "
                '{"data_set": "...", "ledger": "..."}'
            ) from None


def taken_out(data_set: str) -> SiteConfigError:
    """The refusal of a site whose rows were promised something, and whose file promises nothing any more."""
    return SiteConfigError(
        f"[privacy] was taken out, and this site has answered from the ledger of data set {data_set}: put it back. "
        "Answers without it void what that ledger promised of these rows; to give them is the owner's decision, and "
        "takes another `state` folder and another copy of the rows without its .ledger file"
    )
