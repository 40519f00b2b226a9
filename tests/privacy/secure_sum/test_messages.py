"""Bytes that are not believed: every cut, every flipped bit, every body of the wrong form, each with a reason."""

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.noise import SeededEntropy
from privacy.secure_sum import client, server
from privacy.secure_sum.errors import SecureSumError
from privacy.secure_sum.messages import (
    ADVERT,
    AGREEMENT,
    EVERYBODY,
    INVITE,
    KEYS,
    MASKED,
    NO_VIEW,
    OPEN,
    OPENED,
    PARCEL,
    SHARES,
    SURVIVORS,
    bundle,
    invitation,
    invited,
    kind_of,
    members_field,
    members_of,
    seal,
    unbundled,
)
from privacy.secure_sum.session import Session
from tests.privacy.secure_sum.driving import FORM, ME, OF, Met, body_of, refused

MET = Met(registered=True, agreement=True)
SIGNED = MET.play.agreement(MET.summing)
LISTED = server.survivors_list(MET.summing)


def of_the_server(answers, read):
    """What the server makes of site-00's answer where the others' are honest."""
    return lambda blob: read({**answers, ME: blob}).refused


def added(blob):
    try:
        server.added(server.summing(MET.shared_reply, FORM), ME, blob)
    except SecureSumError as error:
        return {ME: error}
    return {}


def opened(blob):
    try:
        return server.total(MET.summing, {**OPENED_BY, ME: blob}).refused
    except SecureSumError as error:  # well-formed shares that are wrong are nobody's in particular
        return {ME: error}


def raising(step):
    """A client's step, as what is refused in it."""

    def told(blob):
        try:
            step(blob)
        except SecureSumError as error:
            return {ME: error}
        return {}

    return told


JOINED, SHARED, INPUTS, AGREED = MET.play.traffic
REQUEST = server.opening(MET.summing, SIGNED)
OPENED_BY = {name: client.unmask(MET.play.sites[name], MET.play.states[name], REQUEST)[1] for name in OF.clients}
# By the kind of message: an honest one, and what its receiver refuses.
RECEIVERS = {
    INVITE: (invitation(OF), raising(lambda blob: client.join(MET.site, invited(blob), SeededEntropy(0)))),
    ADVERT: (JOINED[ME], of_the_server(JOINED, lambda answers: server.keyed(OF, answers))),
    KEYS: (MET.keys, raising(MET.share)),
    SHARES: (SHARED[ME], of_the_server(SHARED, lambda answers: server.shared(MET.keyed, answers))),
    PARCEL: (MET.parcel, raising(MET.mask)),
    MASKED: (INPUTS[ME], added),
    SURVIVORS: (LISTED, raising(lambda blob: client.agree(MET.site, MET.masked, blob))),
    AGREEMENT: (AGREED[ME], of_the_server(AGREED, lambda answers: server.signed_by(MET.summing, answers))),
    OPEN: (REQUEST, raising(lambda blob: client.unmask(MET.site, MET.masked, blob))),
    OPENED: (OPENED_BY[ME], opened),
}
kinds = pytest.mark.parametrize("kind", sorted(RECEIVERS))


@kinds
def test_an_honest_message_is_believed(kind):
    blob, receive = RECEIVERS[kind]
    assert kind_of(blob) == kind
    assert receive(blob) == {}


@kinds
def test_a_message_that_is_cut_or_has_something_behind_it_is_refused(kind):
    blob, receive = RECEIVERS[kind]
    for length in {0, 1, 3, 4, 10, 43, 47, 48, len(blob) // 2, len(blob) - 1}:
        if length < len(blob):
            assert receive(blob[:length])[ME].reason in ("truncated", "foreign")
    assert receive(blob + b"\0")[ME].reason == "truncated"


@kinds
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_is_noticed_wherever_it_is(kind, data):
    blob, receive = RECEIVERS[kind]
    at = data.draw(st.integers(0, 8 * len(blob) - 1))
    flipped = bytearray(blob)
    flipped[at // 8] ^= 1 << at % 8
    assert receive(bytes(flipped))[ME].reason in ("foreign", "truncated", "version", "corrupted")


@kinds
def test_a_message_of_another_kind_session_party_or_version_is_refused(kind):
    blob, receive = RECEIVERS[kind]

    def rewritten(at, form, value):
        message = bytearray(blob[:-4])
        struct.pack_into(form, message, at, value)
        return bytes(message) + struct.pack("<I", zlib.crc32(message))

    assert receive(rewritten(4, "<B", 2))[ME].reason == "version"
    assert receive(rewritten(5, "<B", 99))[ME].reason == "foreign"
    assert receive(rewritten(26, "<H", 3))[ME].reason == "wrong_party"
    view, other = ("malformed", "malformed") if kind == INVITE else ("wrong_view", "wrong_session")
    assert receive(rewritten(28, "<16s", b"another view...."))[ME].reason == view
    assert receive(rewritten(10, "<16s", b"another session."))[ME].reason == other


@kinds
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_body_in_a_whole_envelope_is_read_or_refused_and_nothing_else_is_raised(kind, data):
    blob, receive = RECEIVERS[kind]
    body, honest = data.draw(st.binary(max_size=200)), body_of(blob)
    for told in (body, honest[: len(body)] + body, body + honest[len(body) :], honest + body[:3]):
        view = MET.masked.view if kind > PARCEL else MET.keyed.roster.digest if kind in (SHARES, PARCEL) else NO_VIEW
        party = EVERYBODY if kind in (INVITE, KEYS, SURVIVORS, OPEN) else 0
        assert set(receive(seal(kind, OF.digest, party, view, told))) <= {ME}


def test_every_length_of_a_body_but_the_right_one_is_refused():
    for kind in (ADVERT, KEYS, SHARES, PARCEL, MASKED, SURVIVORS, AGREEMENT, OPENED):
        blob, receive = RECEIVERS[kind]
        view = MET.masked.view if kind > PARCEL else MET.keyed.roster.digest if kind in (SHARES, PARCEL) else NO_VIEW
        party = EVERYBODY if kind in (KEYS, SURVIVORS) else 0
        for body in (body_of(blob)[:-1], body_of(blob) + b"\0", b""):
            assert receive(seal(kind, OF.digest, party, view, body))[ME].reason == "malformed"


def test_messages_have_the_sizes_that_the_readme_names():
    # 48 bytes of envelope; 3 * 3 numbers of 15 bits, 0..5 * 4096 in steps of 2^-12, are 135 bits.
    assert FORM.bits(5) == 15
    sizes = {48 + 160, 48 + 82 * 4, 48 + 17, 48 + 64, 48 + 33 * 5}
    assert {len(RECEIVERS[kind][0]) for kind in (ADVERT, SHARES, MASKED, AGREEMENT, OPENED)} == sizes


def test_lists_with_bits_beyond_the_last_client_are_refused():
    assert members_of(members_field({0, 4}, 5), 5) == (0, 4)
    assert members_field({0, 4}, 5) == b"\x88"
    with refused("malformed"):
        members_of(b"\x8c", 5)
    with refused("malformed"):
        members_of(b"\x88\0", 5)


def test_a_session_is_read_as_it_was_written_or_not_at_all():
    body = OF.encoded()
    assert Session.decoded(body) == OF
    for wrong in (
        b"",
        body[:-1],
        body + b"\0",
        body[:39],
        body[:36] + b"\2\0" + body[38:],
        body[:38] + b"\6\0" + body[40:],
    ):
        with refused("malformed"):
            Session.decoded(wrong)


def test_messages_travel_together_and_apart():
    parts = [b"", b"one", MET.keys]
    assert unbundled(bundle(parts)) == parts
    assert unbundled(bundle([])) == []
    whole = bundle(parts)
    for wrong, reason in [
        (b"", "malformed"),
        (b"\xff", "malformed"),
        (whole + b"\0", "malformed"),
        (whole[:-1], "truncated"),
        (whole[:3], "truncated"),
        (b"\1\xff\xff\xff\xff", "truncated"),
    ]:
        with refused(reason):
            unbundled(wrong)
    with pytest.raises(ValueError, match="65 parts: 64 at most travel together"):
        bundle([b""] * 65)
