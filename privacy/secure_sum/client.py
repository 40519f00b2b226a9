"""A client's side of a secure sum: five steps, each state in, state and answer out.

Bonawitz et al. (2017), Practical Secure Aggregation for Privacy-Preserving Machine Learning, figure 4.
Whoever calls a step stores the new state before the answer leaves, and the answer with it: the same request again is
answered with the stored bytes and never by calling the step again, which refuses it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np

from privacy.noise import Entropy
from privacy.secure_sum.client_state import ClientState, Stage
from privacy.secure_sum.errors import SecureSumError
from privacy.secure_sum.keys import (
    KEY_BYTES,
    SIGNATURE_BYTES,
    TAG_BYTES,
    agreed,
    is_signed,
    private_key,
    public_key,
    sealed,
    signed,
    unsealed,
)
from privacy.secure_sum.masks import Words, packed, stream
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
    members_of,
    members_size,
    opened,
    pieces,
    seal,
    viewed,
)
from privacy.secure_sum.roster import (
    Advert,
    Roster,
    agreement_text,
    channel_key,
    commitment,
    enough,
    pair_key,
    self_key,
    sum_view,
)
from privacy.secure_sum.session import Session, Site
from privacy.secure_sum.shares import PRIME, SHARE_BYTES, split
from privacy.secure_sum.sheet import Int64, Sheet

# A share of the mask key and one of the self mask.
HELD_BYTES = 2 * SHARE_BYTES
SEALED_BYTES = HELD_BYTES + TAG_BYTES
SIGNED_BYTES = 2 + SIGNATURE_BYTES


def join(site: Site, session: Session, entropy: Entropy) -> tuple[ClientState, bytes]:
    """Stage 1: draw keys and a self mask for this session, tell the public side.

    Args:
        entropy: of the operating system; in a simulation, which is NOT PRIVATE, a stream of its own for each client and
            session.

    Raises:
        SecureSumError: `not_invited`, `too_few` or `identity`: the site does not take part in such a session.
    """
    number = site.accepted(session)
    secrets = entropy.bytes(3 * KEY_BYTES)
    mask, channel, own = _three(secrets)
    advert = Advert(public_key(mask), public_key(channel), commitment(own))
    if site.identity:
        advert = advert.signed(session, number, site.identity)
    state = ClientState(Stage.JOINED, session.encoded(), number, secrets=secrets, roster=advert.encoded())
    return state, seal(ADVERT, session.digest, number, NO_VIEW, advert.encoded())


def share(site: Site, state: ClientState, keys: bytes, entropy: Entropy) -> tuple[ClientState, bytes]:
    """Stage 2: share the mask key and the self mask among everybody who sent keys, sealed for each.

    Raises:
        SecureSumError: a message that is not believed, fewer clients than the threshold, this client's own keys
            missing or changed, a key without its owner's signature, or a stage that is over.
    """
    session = state.open_session
    view, body = opened(keys, KEYS, session.digest, EVERYBODY)
    seen = _fresh(state, Stage.SHARED, keys)
    viewed(view, NO_VIEW)
    roster = Roster.decoded(session, body)
    me = state.number
    if me not in roster.adverts or roster.adverts[me].encoded() != state.roster:
        raise SecureSumError("key", "this client's own keys are missing from the list, or changed")
    roster.check_identities(site)
    mask, channel, own = _three(state.secrets)
    points = [member + 1 for member in roster.members]
    of_mask = split(mask, session.threshold, points, entropy)
    of_self = split(own, session.threshold, points, entropy)
    mine, cipher = b"", []
    private, named = private_key(channel), roster.digest
    for member, *shares in zip(roster.members, of_mask, of_self, strict=True):
        plain = b"".join(value.to_bytes(SHARE_BYTES, "big") for value in shares)
        if member == me:
            mine = plain
            continue
        secret = agreed(private, roster.adverts[member].channel_key)
        cipher.append(sealed(channel_key(secret, named, me, member), plain, named))
    after = replace(state, stage=Stage.SHARED, roster=body, held=mine, seen=seen)
    return after, seal(SHARES, session.digest, me, named, b"".join(cipher))


def mask(state: ClientState, parcel: bytes, sheet: Sheet, steps: Int64) -> tuple[ClientState, bytes]:
    """Stage 3: the input, under one mask with each client that shared its keys and one of this client's own.

    Args:
        sheet: what this client believes is being summed, not what the server says here.
        steps: [rows, columns] the input in steps: see Sheet.quantised; noise may have been added to it.

    Raises:
        SecureSumError: a message that is not believed, fewer clients than the threshold, a share that cannot be
            opened, or a stage that is over.
        ValueError: an input that is none for this sheet, or a sheet whose sums are too large.

    Guarantees:
        Without the key of one of its masks the answer cannot be told from random bytes, whatever the input is.
        The private keys are not in the new state any more.
    """
    session = state.open_session
    view, body = opened(parcel, PARCEL, session.digest, state.number)
    seen = _fresh(state, Stage.MASKED, parcel)
    roster = Roster.decoded(session, state.roster)
    viewed(view, roster.digest)
    members, held = _held(state, roster, body)
    named = sum_view(roster, members, sheet)
    bits = sheet.bits(len(session.clients))
    words = _masked(state, roster, members, named, sheet.ring(steps, len(session.clients)), bits)
    after = replace(
        state,
        stage=Stage.MASKED,
        secrets=b"",
        roster=b"",
        members=members_field(members, len(session.clients)),
        held=held,
        view=named,
        seen=seen,
    )
    return after, seal(MASKED, session.digest, state.number, named, packed(words, bits))


def agree(site: Site, state: ClientState, survivors: bytes) -> tuple[ClientState, bytes]:
    """Stage 4, where sites ask for agreement: sign the list of those whose inputs arrived.

    Raises:
        SecureSumError: a message that is not believed, a list without this client or below the threshold, no
            identity to sign with, or a stage that is over.
    """
    session = state.open_session
    view, body = opened(survivors, SURVIVORS, session.digest, EVERYBODY)
    seen = _fresh(state, Stage.AGREED, survivors)
    viewed(view, state.view)
    _survivors(state, body)
    if not site.identity:
        raise SecureSumError("identity", "this site has no identity to sign a list of survivors with")
    after = replace(state, stage=Stage.AGREED, agreed=body, seen=seen)
    signature = signed(site.identity, agreement_text(state.view, body))
    return after, seal(AGREEMENT, session.digest, state.number, state.view, signature)


def unmask(site: Site, state: ClientState, request: bytes) -> tuple[ClientState, bytes]:
    """Stage 5: one share for each client: of its self mask if its input arrived, else of its mask key; never both.

    Raises:
        SecureSumError: a message that is not believed, a list without this client, below the threshold or other than
            the one it signed, too few signatures where the site asks for agreement, or a stage that is over.

    Guarantees:
        The new state holds no share and no key: nothing more can be told, whatever is asked.
    """
    session = state.open_session
    view, body = opened(request, OPEN, session.digest, EVERYBODY)
    seen = _fresh(state, Stage.OPENED, request)
    viewed(view, state.view)
    size = members_size(len(session.clients))
    listed, signatures = body[:size], _signatures(body[size:])
    survivors = _survivors(state, listed)
    if state.agreed and state.agreed != listed:
        raise SecureSumError("conflict", "another list of survivors than the one that this client signed")
    if site.agreement:
        _check_agreement(site, state, listed, signatures)
    members = members_of(state.members, len(session.clients))
    chosen = b"".join(
        held[SHARE_BYTES:] if member in survivors else held[:SHARE_BYTES]
        for member, held in zip(members, pieces(state.held, len(members), HELD_BYTES), strict=True)
    )
    after = ClientState(Stage.OPENED, state.session, state.number, seen=seen)
    return after, seal(OPENED, session.digest, state.number, state.view, chosen)


def _three(secrets: bytes) -> tuple[bytes, bytes, bytes]:
    """The mask key, the channel key and the self mask."""
    return secrets[:KEY_BYTES], secrets[KEY_BYTES : 2 * KEY_BYTES], secrets[2 * KEY_BYTES :]


def _fresh(state: ClientState, stage: Stage, request: bytes) -> tuple[bytes, ...]:
    """What the state has seen with this request, if it is the next one.

    Raises:
        SecureSumError: `replayed`, `conflict` or `wrong_stage`.
    """
    told = hashlib.sha256(request).digest()
    if state.stage >= stage:
        if told in state.seen:
            raise SecureSumError("replayed", "a request that was answered: send the stored answer again")
        raise SecureSumError("conflict", "another request for a stage that is over: a client answers once")
    # AGREED is optional: from MASKED a sum may be opened.
    if state.stage != stage - 1 and (state.stage, stage) != (Stage.MASKED, Stage.OPENED):
        raise SecureSumError("wrong_stage", f"{stage.name} asked of a client that has only {state.stage.name}")
    return (*state.seen, told)


def _held(state: ClientState, roster: Roster, body: bytes) -> tuple[tuple[int, ...], bytes]:
    """Who shared its keys, and their shares for this client, opened; its own among them."""
    clients, me = len(roster.session.clients), state.number
    size = members_size(clients)
    members = members_of(body[:size], clients)
    if me not in members or not set(members) <= set(roster.members):
        raise SecureSumError("malformed", "a list of members without this client, or with one that sent no keys")
    enough(roster.session, len(members), "shared their keys")
    others = [member for member in members if member != me]
    private, named = private_key(_three(state.secrets)[1]), roster.digest
    held = {me: state.held}
    for member, cipher in zip(others, pieces(body[size:], len(others), SEALED_BYTES), strict=True):
        key = channel_key(agreed(private, roster.adverts[member].channel_key), named, member, me)
        plain = unsealed(key, cipher, named)
        if len(plain) != HELD_BYTES or any(
            int.from_bytes(one, "big") >= PRIME for one in pieces(plain, 2, SHARE_BYTES)
        ):
            raise SecureSumError("shares", f"{roster.session.clients[member]} sent shares that are none")
        held[member] = plain
    return members, b"".join(held[member] for member in members)


def _masked(
    state: ClientState, roster: Roster, members: tuple[int, ...], view: bytes, words: Words, bits: int
) -> Words:
    """[entries] the input plus all masks; of two clients the one with the smaller number adds theirs."""
    mask_key, _, own = _three(state.secrets)
    me, private = state.number, private_key(mask_key)
    total = words + stream(self_key(own, view, me), len(words), bits)
    for member in members:
        if member != me:
            secret = agreed(private, roster.adverts[member].mask_key)
            pad = stream(pair_key(secret, view, me, member), len(words), bits)
            (np.add if me < member else np.subtract)(total, pad, out=total)
    return total


def _survivors(state: ClientState, listed: bytes) -> frozenset[int]:
    """A list of those whose inputs arrived, if it may be opened."""
    session = state.open_session
    survivors = frozenset(members_of(listed, len(session.clients)))
    if not survivors <= set(members_of(state.members, len(session.clients))):
        raise SecureSumError("malformed", "a list of survivors with a client that never shared its keys")
    if state.number not in survivors:
        raise SecureSumError("not_in_sum", "this client's input is said to be missing: it opens no such sum")
    enough(session, len(survivors), "sent an input")
    return survivors


def _signatures(told: bytes) -> dict[int, bytes]:
    """Signatures by the number of who signed; unread."""
    if len(told) % SIGNED_BYTES:
        raise SecureSumError("malformed", f"{len(told)} bytes are no list of signatures")
    each = pieces(told, len(told) // SIGNED_BYTES, SIGNED_BYTES)
    numbers = [int.from_bytes(one[:2], "little") for one in each]
    if any(former >= latter for former, latter in pairwise(numbers)):
        raise SecureSumError("malformed", "signatures that are not in strictly ascending order")
    return {number: one[2:] for number, one in zip(numbers, each, strict=True)}


def _check_agreement(site: Site, state: ClientState, listed: bytes, signatures: Mapping[int, bytes]) -> None:
    """Whether `threshold` of the listed signed this very list."""
    session = state.open_session
    if not set(signatures) <= set(members_of(listed, len(session.clients))):
        raise SecureSumError("identity", "a signature by a client that is not on the list")
    text = agreement_text(state.view, listed)
    for number, signature in signatures.items():
        name = session.clients[number]
        if not is_signed(site.registry.get(name, b""), text, signature):
            raise SecureSumError("identity", f"the list of survivors is not signed by {name}'s registered key")
    enough(session, len(signatures), "signed the list of survivors")
