"""Messages of secure sums: strict bytes, in which no length is trusted.

magic "CSUM" | version u8 | kind u8 | body length u32 | session 16 | party u16 | view 16 | body | CRC-32 of all before

`session` names the session, `party` the client that it is from or for, `view` what sender and receiver must both have
seen before: nothing, the keys, or the keys, members and sheet. Bodies have the one length that these imply.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Sequence

import numpy as np

from privacy.secure_sum.errors import SecureSumError
from privacy.secure_sum.session import Session

MAGIC, VERSION = b"CSUM", 1
# From the server, in the order of the stages; a client's answers are one more.
INVITE, KEYS, PARCEL, SURVIVORS, OPEN = 1, 3, 5, 7, 9
ADVERT, SHARES, MASKED, AGREEMENT, OPENED = 2, 4, 6, 8, 10
EVERYBODY = 0xFFFF
NO_VIEW = bytes(32)
_HEAD = struct.Struct("<4sBBI16sH16s")
_MOST_PARTS = 64


def seal(kind: int, session: bytes, party: int, view: bytes, body: bytes) -> bytes:
    """A body as a message; session and view are digests of 32 bytes, of which 16 travel."""
    message = _HEAD.pack(MAGIC, VERSION, kind, len(body), session[:16], party, view[:16]) + body
    return message + struct.pack("<I", zlib.crc32(message))


def kind_of(blob: bytes) -> int:
    """What a message says that it is; -1 for bytes that are none of ours."""
    return blob[5] if len(blob) >= _HEAD.size and blob[:4] == MAGIC else -1


def session_of(blob: bytes) -> bytes:
    """The first 16 bytes of the digest of a message's session, for those who keep several; b"" for bytes not ours."""
    return blob[10:26] if kind_of(blob) >= 0 else b""


def opened(blob: bytes, kind: int, session: bytes | None, party: int) -> tuple[bytes, bytes]:
    """Check the envelope; the view's 16 bytes and the body.

    Args:
        session: digest of 32 bytes; None where it is not known yet.

    Raises:
        SecureSumError: `foreign`, `truncated`, `version`, `corrupted`, `wrong_session` or `wrong_party`.
    """
    if blob[:4] != MAGIC[: len(blob)] or not blob:
        raise SecureSumError("foreign", "these bytes do not begin as a message of a secure sum")
    if len(blob) < _HEAD.size + 4:
        raise SecureSumError("truncated", f"{len(blob)} bytes are less than an envelope")
    _, version, found, length, told, of, view = _HEAD.unpack_from(blob)
    if version != VERSION:
        raise SecureSumError("version", f"version {version}; {VERSION} is spoken here")
    if len(blob) != _HEAD.size + length + 4:
        raise SecureSumError("truncated", f"{len(blob)} bytes where {_HEAD.size + length + 4} were announced")
    if zlib.crc32(blob[:-4]) != struct.unpack("<I", blob[-4:])[0]:
        raise SecureSumError("corrupted", "the checksum does not match")
    if found != kind:
        raise SecureSumError("foreign", f"kind {found} where {kind} is expected")
    if session is not None and told != session[:16]:
        raise SecureSumError("wrong_session", "a message of another run, round or attempt")
    if of != party:
        raise SecureSumError("wrong_party", f"a message of number {of} where that of {party} is expected")
    return view, blob[_HEAD.size : -4]


def viewed(view: bytes, expected: bytes) -> None:
    """Compare a message's view with one's own.

    Raises:
        SecureSumError: `wrong_view`.
    """
    if view != expected[:16]:
        raise SecureSumError("wrong_view", "a message by somebody who has seen other keys, members or another sheet")


def invitation(session: Session) -> bytes:
    """What the server sends first."""
    return seal(INVITE, session.digest, EVERYBODY, NO_VIEW, session.encoded())


def invited(blob: bytes) -> Session:
    """The session that a server proposes; whether to take part is the site's decision.

    Raises:
        SecureSumError: anything but an invitation.
    """
    _, body = opened(blob, INVITE, None, EVERYBODY)
    session = Session.decoded(body)
    if blob != invitation(session):
        raise SecureSumError("malformed", "an invitation that is not written as it must be")
    return session


def members_field(members: Collection[int], clients: int) -> bytes:
    """Numbers of clients as one bit each."""
    bits = np.zeros(clients, bool)
    bits[list(members)] = True
    return np.packbits(bits).tobytes()


def members_of(field: bytes, clients: int) -> tuple[int, ...]:
    """The inverse of `members_field`: ascending numbers below `clients`.

    Raises:
        SecureSumError: `malformed`.
    """
    if len(field) != members_size(clients):
        raise SecureSumError("malformed", f"{len(field)} bytes where {members_size(clients)} list {clients} clients")
    bits = np.unpackbits(np.frombuffer(field, np.uint8))
    if bits[clients:].any():
        raise SecureSumError("malformed", f"a list with clients beyond the {clients} invited")
    return tuple(np.flatnonzero(bits).tolist())


def members_size(clients: int) -> int:
    """Bytes of such a list."""
    return -(-clients // 8)


def pieces(body: bytes, count: int, size: int) -> list[bytes]:
    """A body of `count` pieces of `size` bytes.

    Raises:
        SecureSumError: `malformed`, for another length.
    """
    if len(body) != count * size:
        raise SecureSumError("malformed", f"{len(body)} bytes where {count} pieces of {size} are due")
    return [body[at : at + size] for at in range(0, len(body), size)]


def bundle(parts: Sequence[bytes]) -> bytes:
    """Messages of several sessions, or of one session and anything else, that travel in one exchange."""
    if len(parts) > _MOST_PARTS:
        raise ValueError(f"{len(parts)} parts: {_MOST_PARTS} at most travel together")
    return bytes([len(parts)]) + b"".join(struct.pack("<I", len(part)) + part for part in parts)


def unbundled(blob: bytes) -> list[bytes]:
    """The inverse of `bundle`.

    Raises:
        SecureSumError: `truncated` or `malformed`.
    """
    if not blob or blob[0] > _MOST_PARTS:
        raise SecureSumError("malformed", f"a bundle has 0 to {_MOST_PARTS} parts")
    parts, at = [], 1
    for _ in range(blob[0]):
        if at + 4 > len(blob):
            raise SecureSumError("truncated", "a bundle that ends within a length")
        (length,) = struct.unpack_from("<I", blob, at)
        at += 4
        if at + length > len(blob):
            raise SecureSumError("truncated", f"a part of {length} bytes where {len(blob) - at} are left")
        parts.append(blob[at : at + length])
        at += length
    if at != len(blob):
        raise SecureSumError("malformed", f"{len(blob) - at} bytes behind the last part")
    return parts
