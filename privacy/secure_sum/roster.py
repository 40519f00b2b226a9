"""Who takes part with which keys: what every client must see alike, and what is derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from privacy.secure_sum.errors import SecureSumError
from privacy.secure_sum.keys import DOMAIN, KEY_BYTES, SIGNATURE_BYTES, derived, digest, is_signed, signed
from privacy.secure_sum.messages import members_field, members_of, members_size, pieces
from privacy.secure_sum.session import Session, Site
from privacy.secure_sum.sheet import Sheet

ADVERT_BYTES = 3 * KEY_BYTES + SIGNATURE_BYTES
_UNSIGNED = bytes(SIGNATURE_BYTES)


@dataclass(frozen=True, slots=True)
class Advert:
    """A client's public side of a session.

    Attributes:
        mask_key, channel_key: X25519; of the first the private side is shared, of the second never.
        commitment: to the self mask, so that wrong shares of it are noticed.
        signature: by the client's identity; zeros: none.
    """

    mask_key: bytes
    channel_key: bytes
    commitment: bytes
    signature: bytes = _UNSIGNED

    @classmethod
    def decoded(cls, body: bytes) -> Advert:
        """Read what `encoded` wrote.

        Raises:
            SecureSumError: `malformed`.
        """
        if len(body) != ADVERT_BYTES:
            raise SecureSumError("malformed", f"{len(body)} bytes where keys take {ADVERT_BYTES}")
        cut = (KEY_BYTES, 2 * KEY_BYTES, 3 * KEY_BYTES)
        return cls(body[: cut[0]], body[cut[0] : cut[1]], body[cut[1] : cut[2]], body[cut[2] :])

    @property
    def keys(self) -> tuple[bytes, bytes]:
        """Both."""
        return self.mask_key, self.channel_key

    @property
    def is_signed(self) -> bool:
        """Whether there is a signature; whose it is only a registry says."""
        return self.signature != _UNSIGNED

    def encoded(self) -> bytes:
        """As bytes."""
        return self.mask_key + self.channel_key + self.commitment + self.signature

    def text(self, session: Session, number: int) -> bytes:
        """What is signed."""
        told = (session.digest, number.to_bytes(2, "little"), self.mask_key, self.channel_key, self.commitment)
        return DOMAIN + b"keys " + b"".join(told)

    def signed(self, session: Session, number: int, identity: bytes) -> Advert:
        """The same with a signature."""
        signature = signed(identity, self.text(session, number))
        return Advert(self.mask_key, self.channel_key, self.commitment, signature)


@dataclass(frozen=True, slots=True)
class Roster:
    """The keys of those who take part, by number; at least the session's threshold of them, and no key twice.

    Raises:
        SecureSumError: `too_few` or `key`.
    """

    session: Session
    adverts: Mapping[int, Advert]

    def __post_init__(self) -> None:
        enough(self.session, len(self.adverts), "sent keys")
        keys = [key for advert in self.adverts.values() for key in advert.keys]
        if len(set(keys)) != len(keys):
            raise SecureSumError("key", "two clients, or one client twice, with the same public key")

    @property
    def members(self) -> tuple[int, ...]:
        """Their numbers, ascending."""
        return tuple(sorted(self.adverts))

    def others(self, number: int) -> tuple[int, ...]:
        """The members but one."""
        return tuple(member for member in self.members if member != number)

    @property
    def is_signed(self) -> bool:
        """Whether everybody signed: then they sign the list of survivors as well."""
        return all(advert.is_signed for advert in self.adverts.values())

    @property
    def digest(self) -> bytes:
        """32 bytes that name these keys in this session."""
        return digest(b"roster", self.session.digest, self.encoded())

    def encoded(self) -> bytes:
        """As bytes."""
        adverts = b"".join(self.adverts[member].encoded() for member in self.members)
        return members_field(self.members, len(self.session.clients)) + adverts

    @classmethod
    def decoded(cls, session: Session, body: bytes) -> Roster:
        """Read what `encoded` wrote.

        Raises:
            SecureSumError: `malformed`, `too_few` or `key`.
        """
        size = members_size(len(session.clients))
        members = members_of(body[:size], len(session.clients))
        adverts = map(Advert.decoded, pieces(body[size:], len(members), ADVERT_BYTES))
        return cls(session, dict(zip(members, adverts, strict=True)))

    def check_identities(self, site: Site) -> None:
        """Compare every signature with the site's registry, if there is one.

        Raises:
            SecureSumError: `identity`.
        """
        for number, advert in self.adverts.items() if site.registry else ():
            name = self.session.clients[number]
            if not is_signed(site.registry[name], advert.text(self.session, number), advert.signature):
                raise SecureSumError("identity", f"the keys of {name} are not signed by its registered key")


def enough(session: Session, count: int, what: str) -> None:
    """Refuse to go on with fewer than the threshold.

    Raises:
        SecureSumError: `too_few`.
    """
    if count < session.threshold:
        raise SecureSumError(
            "too_few",
            f"{count} of {len(session.clients)} clients {what} and {session.threshold} are needed: "
            "the sum fails and no input is opened",
        )


def commitment(self_mask: bytes) -> bytes:
    """What a client says of its self mask before it shares it."""
    return digest(b"commitment", self_mask)


def channel_key(agreed: bytes, roster: bytes, sender: int, receiver: int) -> bytes:
    """Seals the one message from a client to another under a roster, by its digest."""
    return derived(agreed, roster, DOMAIN + b"share" + _pair(sender, receiver))


def pair_key(agreed: bytes, view: bytes, first: int, second: int) -> bytes:
    """Of the mask that two clients, in either order, put on one sum, by its view."""
    return derived(agreed, view, DOMAIN + b"pair" + _pair(*sorted((first, second))))


def self_key(self_mask: bytes, view: bytes, number: int) -> bytes:
    """Of the mask that a client alone puts on one sum."""
    return derived(self_mask, view, DOMAIN + b"self" + number.to_bytes(2, "little"))


def sum_view(roster: Roster, members: tuple[int, ...], sheet: Sheet) -> bytes:
    """32 bytes that name a sum: the keys, who shared theirs, and what is filled in."""
    return digest(b"sum", roster.digest, members_field(members, len(roster.session.clients)), sheet.digest)


def agreement_text(view: bytes, survivors: bytes) -> bytes:
    """What clients sign who agree on a list of survivors."""
    return DOMAIN + b"survivors " + view + survivors


def _pair(first: int, second: int) -> bytes:
    return first.to_bytes(2, "little") + second.to_bytes(2, "little")
