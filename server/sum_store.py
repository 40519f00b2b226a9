"""A sum that is about to be opened, kept until it is: a site helps to open one sum a round, so there is no other."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from distillation.export import write_atomically
from privacy.secure_sum import server
from privacy.secure_sum.masks import word_type
from privacy.secure_sum.roster import Roster
from privacy.secure_sum.session import Session
from privacy.secure_sum.sheet import Sheet
from server.checkpoint import CheckpointError


@dataclass(frozen=True, slots=True)
class SumStore:
    """One file, replaced as a whole; nothing in it is secret from the coordinator.

    Attributes:
        path: its folder is there.
    """

    path: Path

    def save(self, state: server.Summing, signed: server.Signed | None = None) -> None:
        """Keep a sum; safe from a power cut.

        Args:
            signed: the signatures under its list of survivors that it is about to be opened with. A site that has
                helped to open it answers these very ones again, and no others.

        Raises:
            OSError: the disk refuses.
        """
        told = {
            "session": _text(state.roster.session.encoded()),
            "roster": _text(state.roster.encoded()),
            "members": list(state.members),
            "survivors": sorted(state.survivors),
            "sheet": state.sheet.digest.hex(),
            "words": _text(state.words.tobytes()),
            "signatures": None if signed is None else [[n, _text(one)] for n, one in sorted(signed.signatures.items())],
        }
        write_atomically(self.path, json.dumps(told).encode(), durable=True)

    def load(self, sheet: Sheet, run: str, round_: int) -> tuple[server.Summing, server.Signed | None] | None:
        """The kept sum of this round on this sheet, with its signatures if it came so far; None where there is none.

        Raises:
            CheckpointError: the file is broken.
        """
        if not self.path.exists():
            return None
        try:
            told = json.loads(self.path.read_bytes())
            session = Session.decoded(b64decode(told["session"]))
            if (session.run, session.round, told["sheet"]) != (run, round_, sheet.digest.hex()):
                return None
            roster = Roster.decoded(session, b64decode(told["roster"]))
            state = server.summing(server.Shared(roster, tuple(told["members"]), {}, {}), sheet)
            words = np.frombuffer(b64decode(told["words"]), word_type(state.bits)).copy()
            if len(words) != sheet.entries:
                raise ValueError(f"{len(words)} numbers for {sheet.entries}")
            survivors, listed = frozenset(told["survivors"]), told["signatures"]
            if not survivors <= {*state.members} <= {*roster.members}:
                raise ValueError("members that were never invited")
            signed = None if listed is None else server.Signed({int(n): b64decode(one) for n, one in listed})
            return replace(state, survivors=survivors, words=words), signed
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            why = " ".join(str(error).split())
            raise CheckpointError(f"{self.path} is broken ({why}): restore it from a backup, or start anew") from error


def _text(data: bytes) -> str:
    return b64encode(data).decode()
