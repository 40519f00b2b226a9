"""What a client refuses, whatever the server sends: both shares of one client, a second answer, a changed message."""

from dataclasses import replace

import pytest

from privacy.noise import SeededEntropy
from privacy.secure_sum import client, server
from privacy.secure_sum.client_state import ClientState
from privacy.secure_sum.keys import agreed, private_key, sealed
from privacy.secure_sum.messages import (
    EVERYBODY,
    KEYS,
    NO_VIEW,
    OPEN,
    PARCEL,
    SURVIVORS,
    invitation,
    invited,
    members_field,
    seal,
)
from privacy.secure_sum.roster import Roster, channel_key
from privacy.secure_sum.session import Site
from tests.privacy.secure_sum.driving import FORM, ME, OF, STEPS, Met, Play, body_of, refused, session, sites

SITE = Site(ME)


@pytest.fixture(scope="module")
def met():
    return Met()


def test_a_server_that_asks_for_both_shares_of_a_client_gets_one():
    """First the whole list, then one without site-04, whose mask key it wants as well."""
    met = Met()
    opened, answer = met.unmask(met.opening({0, 1, 2, 3, 4}))
    assert len(answer) == len(server.opening(met.summing)) - 1 + 5 * 33
    for state in (opened, ClientState.from_bytes(opened.to_bytes())):
        with refused("conflict"):
            met.unmask(met.opening({0, 1, 2, 3}), state)
        with refused("replayed"):
            met.unmask(met.opening({0, 1, 2, 3, 4}), state)
    assert opened.held == b""  # not even the state could tell


def test_of_each_client_exactly_one_share_is_told_and_it_is_the_right_one(met):
    _, answer = met.unmask(met.opening({0, 1, 3}))
    told = answer[-4 - 5 * 33 : -4]
    for member in range(5):
        held = met.masked.held[66 * member : 66 * (member + 1)]
        expected = held[33:] if member in {0, 1, 3} else held[:33]
        assert told[33 * member : 33 * (member + 1)] == expected


@pytest.mark.parametrize(
    ("survivors", "reason"),
    [({1, 2, 3, 4}, "not_in_sum"), ({0, 1}, "too_few"), ({0}, "too_few"), (set(), "not_in_sum")],
)
def test_a_sum_without_oneself_or_of_too_few_is_never_opened(met, survivors, reason):
    with refused(reason):
        met.unmask(met.opening(survivors))


def test_a_second_input_is_refused_in_the_same_session(met):
    with refused("replayed"):
        met.mask(met.parcel, met.masked)
    other = seal(PARCEL, OF.digest, 0, Roster.decoded(OF, met.shared.roster).digest, b"other")
    with refused("conflict"):
        met.mask(other, met.masked)
    with refused("replayed"):
        met.share(met.keys, met.masked)
    with refused("conflict"):
        met.share(seal(KEYS, OF.digest, EVERYBODY, NO_VIEW, b"other"), met.shared)


def test_a_stage_cannot_be_skipped(met):
    with refused("wrong_stage"):
        met.mask(met.parcel, met.joined)
    with refused("wrong_stage"):
        met.unmask(met.opening({0, 1, 2}), met.shared)
    with refused("wrong_stage"):
        client.agree(met.site, met.shared, server.survivors_list(met.summing))


def test_a_message_of_another_round_is_refused(met):
    other = Play(session(5, 3, round_=2), sites(5))
    keyed = other.keyed()
    shared = other.shared(keyed)
    summing = other.masked(shared, FORM, STEPS)
    with refused("wrong_session"):
        met.share(keyed.message)
    with refused("wrong_session"):
        met.mask(shared.messages[ME])
    with refused("wrong_session"):
        met.unmask(server.opening(summing))
    with refused("wrong_session"):
        client.agree(met.site, met.masked, server.survivors_list(summing))


def test_another_clients_parcel_is_refused_and_cannot_be_opened_when_it_is_relabelled(met):
    theirs = met.shared_reply.messages["site-01"]
    with refused("wrong_party"):
        met.mask(theirs)
    view = met.keyed.roster.digest
    members, cipher = body_of(theirs)[:1], body_of(theirs)[1:]
    with refused("sealed"):
        met.mask(seal(PARCEL, OF.digest, 0, view, members + cipher))


def test_ciphertexts_that_are_swapped_within_a_parcel_cannot_be_opened(met):
    body = body_of(met.parcel)
    swapped = body[:1] + body[83:165] + body[1:83] + body[165:]
    with refused("sealed"):
        met.mask(seal(PARCEL, OF.digest, 0, met.keyed.roster.digest, swapped))


def test_a_message_for_another_view_is_refused(met):
    with refused("wrong_view"):
        met.mask(seal(PARCEL, OF.digest, 0, bytes(32), body_of(met.parcel)))
    with refused("wrong_view"):
        met.unmask(met.opening({0, 1, 2}, view=bytes(32)))
    with refused("wrong_view"):
        met.share(seal(KEYS, OF.digest, EVERYBODY, b"\1" * 32, body_of(met.keys)))
    with refused("wrong_view"):
        client.agree(met.site, met.masked, seal(SURVIVORS, OF.digest, EVERYBODY, bytes(32), b"\xf8"))


def test_keys_that_miss_or_change_ones_own_are_refused(met):
    adverts = dict(met.keyed.roster.adverts)
    changed = {**adverts, 0: replace(adverts[0], commitment=bytes(32))}
    without = {number: advert for number, advert in adverts.items() if number}
    for told in (changed, without):
        with refused("key"):
            met.share(seal(KEYS, OF.digest, EVERYBODY, NO_VIEW, Roster(OF, told).encoded()))


def test_keys_of_low_order_or_twice_the_same_are_refused(met):
    adverts = dict(met.keyed.roster.adverts)
    low = Roster(OF, {**adverts, 1: replace(adverts[1], channel_key=bytes(32))})
    with refused("key"):
        met.share(seal(KEYS, OF.digest, EVERYBODY, NO_VIEW, low.encoded()))
    # A Roster with one key twice cannot even be made: written by hand.
    body = body_of(met.keys)
    with refused("key"):
        met.share(seal(KEYS, OF.digest, EVERYBODY, NO_VIEW, body[:1] + body[161:321] + body[161:]))
    with refused("key"):
        Roster(OF, {**adverts, 1: replace(adverts[2], commitment=bytes(32))})


def test_fewer_keys_or_members_than_the_threshold_are_refused(met):
    body = body_of(met.keys)
    with refused("too_few"):
        met.share(seal(KEYS, OF.digest, EVERYBODY, NO_VIEW, members_field({0, 1}, 5) + body[1:321]))
    few = members_field({0, 1}, 5) + body_of(met.parcel)[1:83]
    with refused("too_few"):
        met.mask(seal(PARCEL, OF.digest, 0, met.keyed.roster.digest, few))


@pytest.mark.parametrize("members", [{1, 2, 3, 4}, {0, 1, 2, 4}])
def test_a_parcel_without_oneself_or_from_somebody_without_keys_is_refused(members):
    play = Play(OF, sites(5), {1: ["site-04"]})
    keyed = play.keyed()
    play.shared(keyed)
    body = members_field(members, 5) + bytes(3 * 82)
    with refused("malformed"):
        client.mask(play.states[ME], seal(PARCEL, OF.digest, 0, keyed.roster.digest, body), FORM, STEPS[ME])


def test_a_survivor_that_never_shared_its_keys_is_refused():
    play = Play(OF, sites(5), {2: ["site-04"]})
    summing = play.masked(play.shared(play.keyed()), FORM, STEPS)
    request = seal(OPEN, OF.digest, EVERYBODY, summing.view, members_field({0, 1, 2, 4}, 5))
    with refused("malformed"):
        client.unmask(SITE, play.states[ME], request)


def test_a_share_above_the_prime_is_refused():
    """Sealed by a client that means harm: the receiver notices before it sends its input."""
    met = Met()
    hostile = Play(OF, sites(5))
    keyed = hostile.keyed()
    secrets = hostile.states["site-01"].secrets
    roster = keyed.roster
    secret = agreed(private_key(secrets[32:64]), roster.adverts[0].channel_key)
    bad = sealed(channel_key(secret, roster.digest, 1, 0), b"\xff" * 66, roster.digest)
    body = body_of(met.parcel)
    with refused("shares"):
        met.mask(seal(PARCEL, OF.digest, 0, roster.digest, body[:1] + bad + body[83:]))


def test_a_site_takes_no_part_in_a_session_that_its_owner_would_not_have():
    with refused("not_invited"):
        client.join(Site("site-09"), OF, SeededEntropy(0))
    with refused("too_few"):
        client.join(Site(ME, fewest=4), OF, SeededEntropy(0))
    known = sites(4, registered=True)[ME]
    with refused("identity"):
        client.join(known, OF, SeededEntropy(0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fewest": 1}, "fewest=1 must be 2 or more"),
        ({"identity": b"short"}, "an identity key has 32 bytes, not 5"),
        ({"registry": {"site-00": b"short"}}, "the registered key of 'site-00' has 5 bytes"),
        ({"agreement": True}, "agreement=True needs a registry and an identity"),
    ],
)
def test_a_site_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Site(ME, **fields)


def test_keys_without_their_owners_signature_are_refused_where_there_is_a_registry():
    play = Play(OF, sites(5, registered=True))
    keyed = play.keyed()
    entropy = SeededEntropy(0)
    client.share(play.sites[ME], play.states[ME], keyed.message, entropy)
    adverts = dict(keyed.roster.adverts)
    for forged in (
        replace(adverts[3], mask_key=adverts[3].commitment),
        replace(adverts[3], signature=bytes(64)),
        replace(adverts[3], signature=adverts[2].signature),
    ):
        roster = Roster(OF, {**adverts, 3: forged})
        with refused("identity"):
            client.share(
                play.sites[ME],
                play.states[ME],
                seal(KEYS, OF.digest, EVERYBODY, NO_VIEW, roster.encoded()),
                entropy,
            )


def test_states_and_invitations_that_are_none_are_refused(met):
    blob = met.shared.to_bytes()
    assert ClientState.from_bytes(blob) == met.shared
    for wrong in (b"", blob[:-1], blob + b"\0", b"XXXX" + blob[4:], blob[:4] + b"\x09" + blob[5:], blob[:20]):
        with refused("malformed"):
            ClientState.from_bytes(wrong)
    assert invited(invitation(OF)) == OF
    assert met.shared.secrets.hex() not in repr(met.shared)
