"""The server's side of a secure sum: collects, passes on, adds, and opens one sum.

Every step takes what the clients answered, by name, and leaves out whose answer is not believed: `refused` says why.
One bad answer is that client's failure; fewer good ones than the threshold are the round's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from privacy.secure_sum.client import SEALED_BYTES
from privacy.secure_sum.errors import SecureSumError
from privacy.secure_sum.keys import SIGNATURE_BYTES, agreed, check_public, private_key, public_key
from privacy.secure_sum.masks import Words, stream, unpacked, word_type
from privacy.secure_sum.messages import (
    ADVERT,
    AGREEMENT,
    EVERYBODY,
    KEYS,
    MASKED,
    NO_VIEW,
    OPEN,
    OPENED,
    PARCEL,
    SHARES,
    SURVIVORS,
    members_field,
    opened,
    pieces,
    seal,
    viewed,
)
from privacy.secure_sum.roster import Advert, Roster, commitment, enough, pair_key, self_key, sum_view
from privacy.secure_sum.session import Session
from privacy.secure_sum.shares import PRIME, SHARE_BYTES, combined, weights
from privacy.secure_sum.sheet import Sheet, Total

Answers = Mapping[str, bytes]
Refused = Mapping[str, SecureSumError]
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class Keyed:
    """After stage 1.

    Attributes:
        message: for everybody whose keys are in it; `asked` names them.
        refused: by name, of this stage's answers.
    """

    roster: Roster
    refused: Refused

    @property
    def asked(self) -> tuple[str, ...]:
        """Who goes on."""
        return _names(self.roster.session, self.roster.members)

    @property
    def message(self) -> bytes:
        """Stage 2, the same for all."""
        return seal(KEYS, self.roster.session.digest, EVERYBODY, NO_VIEW, self.roster.encoded())


@dataclass(frozen=True, slots=True)
class Shared:
    """After stage 2.

    Attributes:
        members: numbers of those who shared their keys.
        messages: stage 3, by name.
    """

    roster: Roster
    members: tuple[int, ...]
    messages: Answers
    refused: Refused


@dataclass(frozen=True, slots=True, eq=False)
class Summing:
    """During stage 3, one answer after another.

    Attributes:
        survivors: numbers of those whose inputs were added.
        words: [entries] the masked sum so far, in words whose low bits count.
    """

    roster: Roster
    members: tuple[int, ...]
    sheet: Sheet
    view: bytes
    bits: int
    survivors: frozenset[int]
    words: Words

    @property
    def asked(self) -> tuple[str, ...]:
        """Whose input is in the sum: who is asked from here on."""
        return _names(self.roster.session, self.survivors)


@dataclass(frozen=True, slots=True)
class Signed:
    """After stage 4: who signed the list of survivors, by number."""

    signatures: Mapping[int, bytes] = field(default_factory=dict)
    refused: Refused = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """After stage 5."""

    total: Total
    refused: Refused


def keyed(session: Session, answers: Answers) -> Keyed:
    """Stage 1: whose keys arrived.

    Raises:
        SecureSumError: `too_few`.
    """

    def read(number: int, blob: bytes) -> Advert:
        view, body = opened(blob, ADVERT, session.digest, number)
        viewed(view, NO_VIEW)
        advert = Advert.decoded(body)
        for key in advert.keys:
            check_public(key)
        return advert

    adverts, refused = _read_all(session, range(len(session.clients)), answers, read)
    uses = Counter(key for advert in adverts.values() for key in advert.keys)
    for number in [number for number, advert in adverts.items() if any(uses[key] > 1 for key in advert.keys)]:
        del adverts[number]
        refused[session.clients[number]] = SecureSumError("key", "a public key that was sent twice")
    unsigned = [number for number, advert in adverts.items() if not advert.is_signed]
    if len(adverts) - len(unsigned) >= session.threshold:  # who has a registry takes no roster with them in it
        for number in unsigned:
            del adverts[number]
            refused[session.clients[number]] = SecureSumError("identity", "keys without a signature, where others sign")
    return Keyed(Roster(session, adverts), refused)


def shared(state: Keyed, answers: Answers) -> Shared:
    """Stage 2: every client's sealed shares, sorted by their receivers.

    Raises:
        SecureSumError: `too_few`.
    """
    roster, session = state.roster, state.roster.session
    named = roster.digest

    def read(number: int, blob: bytes) -> Mapping[int, bytes]:
        view, body = opened(blob, SHARES, session.digest, number)
        viewed(view, named)
        others = roster.others(number)
        return dict(zip(others, pieces(body, len(others), SEALED_BYTES), strict=True))

    sent, refused = _read_all(session, roster.members, answers, read)
    enough(session, len(sent), "shared their keys")
    listed = members_field(sent, len(session.clients))
    messages = {
        session.clients[to]: seal(
            PARCEL, session.digest, to, named, listed + b"".join(sent[of][to] for of in sorted(sent) if of != to)
        )
        for to in sent
    }
    return Shared(roster, tuple(sorted(sent)), messages, refused)


def summing(state: Shared, sheet: Sheet) -> Summing:
    """Begin to add; nothing yet.

    Raises:
        ValueError: sums of such a sheet are too large.
    """
    bits = sheet.bits(len(state.roster.session.clients))
    view = sum_view(state.roster, state.members, sheet)
    words: Words = np.zeros(sheet.entries, word_type(bits))
    return Summing(state.roster, state.members, sheet, view, bits, frozenset(), words)


def added(state: Summing, client: str, answer: bytes) -> Summing:
    """Stage 3: one more masked input; the order of the clients does not matter.

    Raises:
        SecureSumError: an answer that is not believed, or a second one; the sum stays as it was.
    """
    session = state.roster.session
    number = _number(session, client, state.members)
    if number in state.survivors:
        raise SecureSumError("replayed", f"{client} has sent an input already")
    view, body = opened(answer, MASKED, session.digest, number)
    viewed(view, state.view)
    words: Words = state.words + unpacked(body, state.sheet.entries, state.bits)
    return replace(state, survivors=state.survivors | {number}, words=words)


def survivors_list(state: Summing) -> bytes:
    """Stage 4, for sites that ask for agreement: the list that is to be signed, the same for all.

    Raises:
        SecureSumError: `too_few`.
    """
    return seal(SURVIVORS, state.roster.session.digest, EVERYBODY, state.view, _listed(state))


def signed_by(state: Summing, answers: Answers) -> Signed:
    """Stage 4: the signatures, passed on unread.

    Raises:
        SecureSumError: `too_few`.
    """
    session = state.roster.session

    def read(number: int, blob: bytes) -> bytes:
        view, body = opened(blob, AGREEMENT, session.digest, number)
        viewed(view, state.view)
        return pieces(body, 1, SIGNATURE_BYTES)[0]

    signatures, refused = _read_all(session, sorted(state.survivors), answers, read)
    enough(session, len(signatures), "signed the list of survivors")
    return Signed(signatures, refused)


def opening(state: Summing, agreement: Signed | None = None) -> bytes:
    """Stage 5: who has survived, the same for all; with the signatures where there are some.

    Raises:
        SecureSumError: `too_few`.
    """
    told = {} if agreement is None else agreement.signatures
    signatures = b"".join(number.to_bytes(2, "little") + told[number] for number in sorted(told))
    return seal(OPEN, state.roster.session.digest, EVERYBODY, state.view, _listed(state) + signatures)


def total(state: Summing, answers: Answers) -> Opened:
    """Stage 5: take off every mask that is left.

    Raises:
        SecureSumError: `too_few`, or `shares`: they do not combine to what a client announced.

    Guarantees:
        The sum of the survivors' inputs, exactly, if every input was within the sheet.
    """
    session = state.roster.session
    _listed(state)

    def read(number: int, blob: bytes) -> list[int]:
        view, body = opened(blob, OPENED, session.digest, number)
        viewed(view, state.view)
        values = [int.from_bytes(one, "big") for one in pieces(body, len(state.members), SHARE_BYTES)]
        if max(values) >= PRIME:
            raise SecureSumError("malformed", "a share that is not below the prime")
        return values

    told, refused = _read_all(session, sorted(state.survivors), answers, read)
    enough(session, len(told), "opened the sum")
    chosen = sorted(told)[: session.threshold]
    factors = weights([number + 1 for number in chosen])
    words = state.words.copy()
    for place, member in enumerate(state.members):
        secret = _secret(state, member, [told[number][place] for number in chosen], factors)
        if member in state.survivors:
            words -= stream(self_key(secret, state.view, member), len(words), state.bits)
        else:
            _take_off(state, member, secret, words)
    names = _names(session, state.survivors)
    return Opened(Total(state.sheet.total(words, len(session.clients)), state.sheet, names), refused)


def _secret(state: Summing, member: int, values: list[int], factors: list[int]) -> bytes:
    """A survivor's self mask or another's mask key, compared with what the client announced."""
    advert = state.roster.adverts[member]
    try:
        secret = combined(values, factors)
        is_it = (
            commitment(secret) == advert.commitment
            if member in state.survivors
            else public_key(secret) == advert.mask_key
        )
    except ValueError:
        is_it = False
    if not is_it:
        name = state.roster.session.clients[member]
        raise SecureSumError("shares", f"the shares of {name}'s secret do not combine to what it announced")
    return secret


def _take_off(state: Summing, gone: int, mask_key: bytes, words: Words) -> None:
    """Take the masks that the survivors have put on for a client that is gone off the sum."""
    private = private_key(mask_key)
    for member in state.survivors:
        secret = agreed(private, state.roster.adverts[member].mask_key)
        pad = stream(pair_key(secret, state.view, member, gone), len(words), state.bits)
        (np.subtract if member < gone else np.add)(words, pad, out=words)


def _listed(state: Summing) -> bytes:
    enough(state.roster.session, len(state.survivors), "sent an input")
    return members_field(state.survivors, len(state.roster.session.clients))


def _names(session: Session, numbers: frozenset[int] | tuple[int, ...]) -> tuple[str, ...]:
    return tuple(session.clients[number] for number in sorted(numbers))


def _number(session: Session, client: str, expected: tuple[int, ...]) -> int:
    if client not in session.clients or session.clients.index(client) not in expected:
        raise SecureSumError("not_invited", f"{client} was not asked")
    return session.clients.index(client)


def _read_all(
    session: Session, asked: range | list[int] | tuple[int, ...], answers: Answers, read: Callable[[int, bytes], _Read]
) -> tuple[dict[int, _Read], dict[str, SecureSumError]]:
    """What each asked client sent, by number, and whose answers are refused; silence is neither."""
    known: dict[int, _Read] = {}
    refused: dict[str, SecureSumError] = {}
    for client, blob in answers.items():
        try:
            number = _number(session, client, tuple(asked))
            known[number] = read(number, blob)
        except SecureSumError as error:
            refused[client] = error
    return known, refused
