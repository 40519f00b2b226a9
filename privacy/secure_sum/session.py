"""One sum: who is invited, how many must stay, and what a site asks before it takes part."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from privacy.secure_sum.errors import SecureSumError
from privacy.secure_sum.keys import KEY_BYTES, digest

FEWEST, MOST = 3, 10_000
_RUN = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FIELDS = struct.Struct("<16sI16sHH")


@dataclass(frozen=True, slots=True)
class Session:
    """What the server proposes, and everybody knows.

    Attributes:
        run: 32 hex digits.
        round: 0 or more.
        nonce: 32 hex digits that the server draws for every attempt.
        clients: names of the invited, strictly ascending; a client's place in here is its number.
        threshold: t, how many must stay to the end; more than half of the invited.

    Raises:
        ValueError: a field that breaks its rule.
    """

    run: str
    round: int
    nonce: str
    clients: tuple[str, ...]
    threshold: int

    def __post_init__(self) -> None:
        for name, value in (("run", self.run), ("nonce", self.nonce)):
            if not _RUN.fullmatch(value):
                raise ValueError(f"{name}={value!r} must be 32 hex digits")
        if not 0 <= self.round < 2**32:
            raise ValueError(f"round={self.round} must be in [0, 2^32)")
        count = len(self.clients)
        if not FEWEST <= count <= MOST:
            raise ValueError(f"{count} clients: {FEWEST} to {MOST} can be summed; of two, each would know the other")
        if not all(_NAME.fullmatch(name) for name in self.clients):
            raise ValueError("a client's name has 1 to 64 letters, digits, dots, dashes and underscores")
        if any(former >= latter for former, latter in pairwise(self.clients)):
            raise ValueError("clients must be in strictly ascending order: sort them")
        if not count < 2 * self.threshold <= 2 * count:
            raise ValueError(
                f"threshold={self.threshold} must be in ({count / 2:g}, {count}]: with half of the clients or fewer, "
                "two halves could open one input together"
            )

    @property
    def digest(self) -> bytes:
        """32 bytes that name this very session."""
        return digest(b"session", self.encoded())

    def encoded(self) -> bytes:
        """As bytes."""
        told = (bytes.fromhex(self.run), self.round, bytes.fromhex(self.nonce), self.threshold, len(self.clients))
        names = b"".join(bytes([len(name)]) + name.encode() for name in self.clients)
        return _FIELDS.pack(*told) + names

    @classmethod
    def decoded(cls, body: bytes) -> Session:
        """Read what `encoded` wrote.

        Raises:
            SecureSumError: `malformed`.
        """
        if len(body) < _FIELDS.size:
            raise SecureSumError("malformed", f"{len(body)} bytes are less than a session")
        run, round_, nonce, threshold, count = _FIELDS.unpack_from(body)
        names: list[str] = []
        at = _FIELDS.size
        while at < len(body) and len(names) < count:
            end = at + 1 + body[at]
            names.append(body[at + 1 : end].decode("ascii", "replace"))
            at = end
        if at != len(body) or len(names) != count:
            raise SecureSumError("malformed", f"a session that announces {count} clients and holds others")
        try:
            return cls(run.hex(), round_, nonce.hex(), tuple(names), threshold)
        except ValueError as error:
            raise SecureSumError("malformed", str(error)) from error


@dataclass(frozen=True, slots=True)
class Site:
    """Who takes part, and what its owner asks of every session; the server neither sees nor sets it.

    Attributes:
        name: of this client.
        fewest: the smallest threshold that it accepts: never fewer inputs in a sum.
        registry: public identity keys (Ed25519, 32 bytes) of all clients by name, exchanged by their owners and not
            by the server. With one, every client's keys must be signed. Without one the server could hand out keys
            of its own in everybody's name: it must then be trusted to follow the protocol.
        identity: this client's private key, 32 bytes; b"" signs nothing.
        agreement: open a sum only if `threshold` clients have signed the same list of survivors; costs one exchange.
        colluding: so many clients may tell the server all that they know: the threshold is so high that they and half
            of the others do not reach it. 0: a majority is enough.

    Raises:
        ValueError: a field that breaks its rule.
    """

    name: str
    fewest: int = 2
    registry: Mapping[str, bytes] = field(default_factory=dict)
    identity: bytes = field(default=b"", repr=False)
    agreement: bool = False
    colluding: int = 0

    def __post_init__(self) -> None:
        if self.fewest < 2:
            raise ValueError(f"fewest={self.fewest} must be 2 or more: the sum of one input is that input")
        if self.identity and len(self.identity) != KEY_BYTES:
            raise ValueError(f"an identity key has {KEY_BYTES} bytes, not {len(self.identity)}")
        for name, key in self.registry.items():
            if len(key) != KEY_BYTES:
                raise ValueError(f"the registered key of {name!r} has {len(key)} bytes: {KEY_BYTES} are needed")
        if self.agreement and not (self.registry and self.identity):
            raise ValueError("agreement=True needs a registry and an identity: lists are signed by registered keys")

    def accepted(self, session: Session) -> int:
        """This client's number in a session that it may take part in.

        Raises:
            SecureSumError: `not_invited`, `too_few` or `identity`.
        """
        if self.name not in session.clients:
            raise SecureSumError("not_invited", f"{self.name} is not among the {len(session.clients)} invited")
        if session.threshold < self.fewest:
            raise SecureSumError("too_few", f"a threshold of {session.threshold}; this site asks for {self.fewest}")
        if 2 * session.threshold <= len(session.clients) + self.colluding:
            raise SecureSumError(
                "too_few",
                f"a threshold of {session.threshold} of {len(session.clients)}; with {self.colluding} colluding two "
                "halves of the others could open one input together",
            )
        strangers = [name for name in session.clients if self.registry and name not in self.registry]
        if strangers:
            raise SecureSumError("identity", f"{strangers[0]} and {len(strangers) - 1} more are not in the registry")
        return session.clients.index(self.name)


def honest_inputs(
    clients: int, threshold: int, colluding: int = 0, *, active: bool = False, agreement: bool = False
) -> int:
    """Fewest inputs of honest clients in any sum that the server and `colluding` clients can learn from one session.

    Args:
        active: the server lies, to each client differently; every client has a registry. False: it follows the
            protocol, looks at everything, and hears what the colluding clients know.
        agreement: every honest client asks for it.

    Returns:
        0 where nothing is promised.

    An honest client gives one share of each other client: of its mask key if it is told that the other is gone, at most
    clients - threshold times, else of its self mask. To open a mask key takes threshold - colluding such shares.
    Whoever takes part with an honest client in a sum has the same view, of threshold members or more, and only members
    whose mask keys are open are missing from the sum. With agreement there is one view (Bonawitz et al. 2017, section
    6).

    >>> honest_inputs(10, 7, 2), honest_inputs(10, 9, active=True), honest_inputs(10, 9, active=True, agreement=True)
    (5, 8, 9)
    """
    if not (clients < 2 * threshold <= 2 * clients and 0 <= colluding <= clients):
        raise ValueError(f"threshold={threshold} must be in ({clients / 2:g}, {clients}], colluding in [0, {clients}]")
    left = max(0, threshold - colluding)
    if not active or left == 0:
        return left
    if 2 * threshold <= clients + colluding:  # both secrets of one client could be opened
        return 0
    if agreement:
        return left
    opened = (clients - colluding) * (clients - threshold) // left
    return max(0, left - opened)
