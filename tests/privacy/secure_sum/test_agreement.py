"""Sites that open a sum only if enough of them signed the same list of survivors."""

import pytest

from privacy.secure_sum import client, server
from privacy.secure_sum.client_state import Stage
from privacy.secure_sum.messages import EVERYBODY, SURVIVORS, seal
from privacy.secure_sum.session import Site
from tests.privacy.secure_sum.driving import ME, OF, Met, Play, names, refused, session, sites


@pytest.fixture(scope="module")
def met():
    met = Met(registered=True, agreement=True)
    met.signed = met.play.agreement(met.summing)
    met.agreed = met.play.states[ME]
    met.text = b"".join(
        number.to_bytes(2, "little") + signature for number, signature in sorted(met.signed.signatures.items())
    )
    return met


def test_a_sum_whose_list_enough_clients_signed_is_opened(met):
    state, _ = met.unmask(met.opening(range(5), met.text), met.agreed)
    assert state.stage is Stage.OPENED
    met.unmask(met.opening(range(5), met.text[: 3 * 66]), met.agreed)  # three signatures are the threshold


def test_a_site_that_did_not_sign_opens_it_all_the_same(met):
    met.unmask(met.opening(range(5), met.text[66:]), met.masked)


@pytest.mark.parametrize(
    ("cut", "reason"), [(slice(0, 0), "too_few"), (slice(0, 132), "too_few"), (slice(0, 65), "malformed")]
)
def test_too_few_signatures_are_refused(met, cut, reason):
    with refused(reason):
        met.unmask(met.opening(range(5), met.text[cut]), met.agreed)


def test_signatures_twice_or_in_another_order_are_refused(met):
    for text in (met.text[:66] * 3, met.text[66:132] + met.text[:66] + met.text[132:]):
        with refused("malformed"):
            met.unmask(met.opening(range(5), text), met.agreed)


def test_a_signature_of_another_list_or_by_somebody_else_is_refused(met):
    with refused("identity"):  # signed for five, shown for four
        met.unmask(met.opening(range(4), met.text[: 4 * 66]), met.masked)
    with refused("identity"):  # number 1 shows what number 0 signed
        met.unmask(met.opening(range(5), met.text[:66] + b"\1\0" + met.text[2:66] + met.text[132:]), met.agreed)
    with refused("identity"):  # signed by one who is not on the list
        met.unmask(met.opening({0, 1, 2}, met.text[-66:]), met.masked)


def test_another_list_than_the_signed_one_is_refused(met):
    with refused("conflict"):
        met.unmask(met.opening(range(4), met.text), met.agreed)


def test_a_list_is_signed_once(met):
    listed = server.survivors_list(met.summing)
    with refused("replayed"):
        client.agree(met.site, met.agreed, listed)
    with refused("conflict"):
        client.agree(met.site, met.agreed, seal(SURVIVORS, OF.digest, EVERYBODY, met.masked.view, b"\xe0"))


def test_a_site_without_identity_signs_nothing(met):
    with refused("identity"):
        client.agree(Site(ME), met.masked, server.survivors_list(met.summing))


def test_a_list_without_oneself_is_not_signed(met):
    with refused("not_in_sum"):
        client.agree(met.site, met.masked, seal(SURVIVORS, OF.digest, EVERYBODY, met.masked.view, b"\x78"))


def test_colluding_clients_raise_the_least_threshold():
    """5 clients, t = 3: with one colluding, it and two of the others are three, twice over."""
    assert Site(ME).accepted(OF) == 0
    with refused("too_few"):
        Site(ME, colluding=1).accepted(OF)
    assert Site(ME, colluding=1).accepted(session(5, 4)) == 0  # 8 > 5 + 1
    with refused("too_few"):
        Site(ME, colluding=3).accepted(session(5, 4))


@pytest.mark.parametrize(("unsigned", "left_out"), [(1, True), (2, True), (3, False), (5, False)])
def test_keys_without_a_signature_are_left_out_where_the_threshold_signs(unsigned, left_out):
    """Who has a registry takes no roster with them in it; where fewer than t sign, there may be no registry."""
    signing = sites(5, registered=True)
    for name in names(unsigned):
        signing[name] = Site(name)
    keyed = Play(OF, signing).keyed()
    assert len(keyed.asked) == 5 - unsigned * left_out
    assert keyed.roster.is_signed == left_out
    assert [error.reason for error in keyed.refused.values()] == ["identity"] * unsigned * left_out
