"""What a client keeps between two messages of one secure sum, as bytes that its site can store."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from privacy.secure_sum.errors import SecureSumError
from privacy.secure_sum.session import Session

_HEAD = struct.Struct("<4sBHB")
_MAGIC = b"CSS1"


class Stage(IntEnum):
    """The last step that was taken."""

    JOINED = 1
    SHARED = 2
    MASKED = 3
    AGREED = 4
    OPENED = 5


@dataclass(frozen=True, slots=True)
class ClientState:
    """After one step.

    Attributes:
        stage: which one.
        session: encoded.
        number: of this client in it.
        secrets: mask key, channel key and self mask, until the input is masked.
        roster: this client's own keys after joining, everybody's after sharing, nothing from then on.
        members: who shared keys, from masking on.
        held: shares for this client: first its own ones, from masking on one pair a member.
        view: which sum was masked.
        agreed: the list of survivors that was signed.
        seen: hashes of the requests that were answered.
    """

    stage: Stage
    session: bytes
    number: int
    secrets: bytes = b""
    roster: bytes = b""
    members: bytes = b""
    held: bytes = b""
    view: bytes = b""
    agreed: bytes = b""
    seen: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return f"ClientState({self.stage.name}, number={self.number})"  # keys and shares stay out of logs

    @property
    def open_session(self) -> Session:
        """The session, decoded."""
        return Session.decoded(self.session)

    def to_bytes(self) -> bytes:
        """To be stored where nobody else reads; before stage OPENED it holds keys or shares."""
        told = (self.session, self.secrets, self.roster, self.members, self.held, self.view, self.agreed)
        fields = (*told, *self.seen)
        head = _HEAD.pack(_MAGIC, self.stage, self.number, len(fields))
        return head + b"".join(struct.pack("<I", len(field)) + field for field in fields)

    @classmethod
    def from_bytes(cls, blob: bytes) -> ClientState:
        """Read what `to_bytes` wrote.

        Raises:
            SecureSumError: `malformed`.
        """
        try:
            magic, stage, number, count = _HEAD.unpack_from(blob)
            fields, at = [], _HEAD.size
            for _ in range(count):
                (length,) = struct.unpack_from("<I", blob, at)
                fields.append(blob[at + 4 : at + 4 + length])
                at += 4 + length
            session, secrets, roster, members, held, view, agreed, *seen = fields
            state = cls(Stage(stage), session, number, secrets, roster, members, held, view, agreed, tuple(seen))
        except (struct.error, ValueError) as error:
            raise SecureSumError("malformed", "these bytes are no client's state") from error
        if magic != _MAGIC or state.to_bytes() != blob:
            raise SecureSumError("malformed", "these bytes are no client's state")
        return state
