"""A site with a registry of its peers: what a coordinator that lies to it gets, which is nothing."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from client.config import PartSection, PrivacySection, SiteConfigError, load_site
from client.node import Node
from client.promise import promise_of
from client.state import StateStore
from client.sum_wire import noisy_sheet, sheet_of, steps_of
from privacy.noise import OsEntropy
from privacy.secure_sum import client, server
from privacy.secure_sum.errors import SecureSumError
from privacy.secure_sum.messages import EVERYBODY, OPEN, SURVIVORS, members_field, seal
from privacy.secure_sum.session import Session, Site
from strategies.wire import decode_answer, encode_plan
from tests.client.summing import Sum

PEERS = tuple(f"peer-{index}" for index in range(1, 5))
REFUSED = "secure_sum_refused"
SPLIT = PartSection(name="client-sum-distributed", clip=1.0, clients=5, least=4, colluding=0.0)


@pytest.fixture
def plan(site_file, make_plan):
    return make_plan(site_file)


@pytest.fixture
def peers(site_file, register):
    """The site and four peers, known to each other."""
    return register({"site-0": site_file}, PEERS)


@pytest.fixture
def said(caplog):
    """A function: whether the site's own log has a sentence with these words."""
    caplog.set_level(logging.WARNING, "consilium.node")
    return lambda words: any(words in record.getMessage() for record in caplog.records)


def summing(plan, peers, nonce="1", **told):
    return Sum(plan, nonce, others=PEERS, threshold=4, peers=peers, **told)


def signed_lists(one, peers, survivors, signers):
    """The bytes behind a list of survivors: signatures by these peers, made as honest ones would make them."""
    listed = seal(SURVIVORS, one.session.digest, EVERYBODY, one.adding.view, members_field(survivors, 5))
    told = {}
    for name in signers:
        _, answer = client.agree(peers[name], one.states[name], listed)
        told[one.session.clients.index(name)] = answer[44:-4]
    return b"".join(number.to_bytes(2, "little") + told[number] for number in sorted(told))


def opening(one, survivors, signatures):
    body = members_field(survivors, 5) + signatures
    return seal(OPEN, one.session.digest, EVERYBODY, one.adding.view, body)


def test_among_peers_who_know_each_other_a_sum_is_opened_exactly(site_file, plan, peers, forget):
    told = summing(plan, peers).run(site_file)
    forget(site_file)
    report = decode_answer(Node.open(site_file).answer(encode_plan(plan)))
    np.testing.assert_array_equal(told, steps_of(report, plan))


def test_a_coordinator_that_plays_nine_ghosts_gets_no_share_of_any_secret(site_file, make_plan, register, change, said):
    """Its ghosts are no registered sites: the invitation is the last that it hears of."""
    register({"site-0": site_file}, PEERS)
    change(site_file, policy={"secure_sum": "require", "sum_threshold": 4})
    ghosts = tuple(f"ghost-{index}" for index in range(9))
    one = Sum(make_plan(site_file), others=ghosts, threshold=7)
    assert one.join(site_file) == REFUSED
    assert said("identity: ghost-0 and 8 more are not in the registry")
    assert StateStore(site_file.parent / "state", durable=False).load() is None  # no key was even drawn


def test_a_coordinator_that_plays_registered_peers_gets_no_share_of_any_secret(site_file, plan, peers, said):
    """It answers in their names, unsigned or signed by keys of its own."""
    for nonce, key in enumerate((b"", bytes(range(32))), start=1):
        ghosts = {name: Site(name, registry=peers[name].registry, identity=key) for name in PEERS}
        one = summing(plan, ghosts, str(nonce))
        assert one.join(site_file) == ""  # a public key and a commitment: nothing that could be opened
        assert one.share(site_file) == REFUSED
        assert said("identity: the keys of peer-1 are not signed by its registered key")


@pytest.mark.parametrize("field", ["mask_key", "channel_key", "commitment", "signature"])
def test_one_forged_key_among_honest_ones_is_refused(site_file, plan, peers, said, field):
    one = summing(plan, peers)
    one.join(site_file)
    adverts, other = dict(one.keyed.roster.adverts), client.join(Site("peer-2"), one.session, OsEntropy())[1][44:-4]
    forged = type(adverts[1]).decoded(other)
    adverts[1] = replace(adverts[1], **{field: getattr(forged, field)})
    one.keyed = server.Keyed(replace(one.keyed.roster, adverts=adverts), {})
    assert one.share(site_file) == REFUSED
    assert said("the keys of peer-2 are not signed by its registered key")


@pytest.mark.parametrize("changed", [{"run": "cd" * 16}, {"round": 2}, {"nonce": "9" * 32}, {"threshold": 5}])
def test_keys_that_were_signed_for_another_run_round_or_sum_are_refused(site_file, plan, peers, said, changed):
    """A coordinator that has heard honest peers elsewhere replays what they signed there."""
    one = summing(plan, peers)
    one.join(site_file)
    told = {"run": plan.run, "round": 1, "nonce": "1" * 32, "threshold": 4}
    elsewhere = Session(clients=one.session.clients, **{**told, **changed})
    replayed = {name: client.join(peers[name], elsewhere, OsEntropy())[1] for name in PEERS}
    theirs = server.keyed(elsewhere, {**replayed, "site-0": client.join(peers["site-0"], elsewhere, OsEntropy())[1]})
    me = one.session.clients.index("site-0")
    adverts = {**theirs.roster.adverts, me: one.keyed.roster.adverts[me]}
    one.keyed = server.Keyed(type(theirs.roster)(one.session, adverts), {})
    assert one.share(site_file) == REFUSED
    assert said("are not signed by its registered key")


def test_two_stories_of_who_survived_open_nothing(site_file, plan, peers, said):
    """To one half peer-4 is gone, to the other peer-3: neither list finds four signatures, so no share leaves."""
    one = summing(plan, peers).begun(site_file)
    assert one.give(site_file) == ""
    number = one.session.clients.index
    without = {gone: [number(name) for name in one.session.clients if name != gone] for gone in ("peer-3", "peer-4")}
    halves = {"peer-4": ("peer-1", "peer-2"), "peer-3": ("peer-4",)}
    mine = seal(SURVIVORS, one.session.digest, EVERYBODY, one.adding.view, members_field(without["peer-4"], 5))
    signature = one.ask(site_file, mine)[44:-4]  # it signs one story, and so do two peers
    signed = signed_lists(one, peers, without["peer-4"], halves["peer-4"])
    signed += number("site-0").to_bytes(2, "little") + signature
    assert one.ask(site_file, opening(one, without["peer-4"], signed)) == REFUSED
    assert said("too_few: 3 of 5 clients signed the list of survivors and 4 are needed")
    other = signed_lists(one, peers, without["peer-3"], halves["peer-3"])
    assert one.ask(site_file, opening(one, without["peer-3"], other)) == REFUSED
    assert said("conflict: another list of survivors than the one that this client signed")
    for name in halves["peer-4"]:
        with pytest.raises(SecureSumError, match="too_few"):
            client.unmask(peers[name], one.states[name], opening(one, without["peer-4"], signed))
    with pytest.raises(SecureSumError, match="too_few"):
        client.unmask(peers["peer-4"], one.states["peer-4"], opening(one, without["peer-3"], other))


def test_a_list_that_nobody_was_asked_to_sign_opens_nothing(site_file, plan, peers, said):
    one = summing(plan, peers).begun(site_file)
    one.give(site_file)
    assert one.ask(site_file, server.opening(one.adding)) == REFUSED
    assert said("too_few: 0 of 5 clients signed the list of survivors and 4 are needed")


def test_signatures_of_another_sum_open_nothing(site_file, plan, peers, said):
    """A first sum of the round got all its signatures; the second shows them to be opened."""
    first = summing(plan, peers).begun(site_file)
    first.give(site_file)
    assert first.sign(site_file) == ""
    second = summing(plan, peers, "2").begun(site_file)
    second.give(site_file)
    second.signed = first.signed
    assert second.open(site_file) == REFUSED
    assert said("the list of survivors is not signed by peer-1's registered key")


def test_a_list_is_signed_once_and_the_same_bytes_are_sent_again(site_file, plan, peers):
    one = summing(plan, peers).begun(site_file)
    one.give(site_file)
    listed = server.survivors_list(one.adding)
    assert one.ask(site_file, listed) == one.ask(site_file, listed)
    fewer = seal(SURVIVORS, one.session.digest, EVERYBODY, one.adding.view, members_field([1, 2, 3, 4], 5))
    assert one.ask(site_file, fewer) == REFUSED


def test_a_peer_that_drops_out_after_sharing_its_keys_costs_its_own_input_and_no_other(site_file, plan, peers, forget):
    one = summing(plan, peers).begun(site_file)
    zeros, give = np.zeros(one.sheet.shape, np.int64), one.ask(site_file, one.shared.messages["site-0"], one.blob)
    one.adding = server.added(one.adding, "site-0", give)
    del one.others["peer-3"]
    for name, masked in one.others_take(
        lambda site, state: client.mask(state, one.shared.messages[site.name], one.sheet, zeros)
    ).items():
        one.adding = server.added(one.adding, name, masked)
    assert one.sign(site_file) == ""
    told = one.open(site_file)
    forget(site_file)
    np.testing.assert_array_equal(told, steps_of(decode_answer(Node.open(site_file).answer(encode_plan(plan))), plan))


def test_a_registry_that_comes_between_two_stages_is_asked_before_the_input_is_given(
    site_file, plan, register, said, change
):
    ghosts = Sum(plan, others=PEERS, threshold=4).begun(site_file)
    register({"site-0": site_file}, PEERS)
    assert ghosts.give(site_file) == REFUSED
    assert said("the keys of peer-1 are not signed by its registered key")
    second = Sum(plan, "2", others=PEERS, threshold=4)
    change(site_file, policy={"sum_threshold": 5})
    assert second.join(site_file) == REFUSED


@pytest.mark.parametrize(
    "changed",
    [
        {"clip": 2.0},
        {"clients": 6},
        {"least": 5},
        {"colluding": 0.25},
        {"noise_multiplier": 2.0},
        {"least": 5, "colluding": 0.2},
    ],
)
def test_a_site_whose_noise_is_split_on_other_terms_is_in_no_sum_of_its_peers(site_file, plan, peers, change, changed):
    """Its input names another sum, which the coordinator cannot add, and no peer signs a list of that sum.

    ceil(.8 * 5) = 4 share the noise in the last case as well: the sums have the same room, and other terms.
    """
    told = {"noise_multiplier": 1.5, "rounds": 3, "seeded": True, "delta": 1e-3}
    change(site_file, privacy=PrivacySection(mechanism=SPLIT, **told))
    theirs = promise_of(load_site(site_file), 30, 3).split
    told |= {key: value for key, value in changed.items() if key == "noise_multiplier"}
    settings = {key: value for key, value in changed.items() if key != "noise_multiplier"}
    change(site_file, privacy=PrivacySection(mechanism=SPLIT.model_copy(update=settings), **told))
    one = Sum(plan, others=PEERS, threshold=5, peers=peers, sheet=noisy_sheet(plan, theirs)).begun(site_file)
    with pytest.raises(SecureSumError, match=r"^wrong_view: .* other keys, members or another sheet"):
        one.give(site_file)
    assert one.adding.survivors == frozenset()
    one.adding = server.summing(one.shared, noisy_sheet(plan, promise_of(load_site(site_file), 30, 3).split))
    listed = seal(SURVIVORS, one.session.digest, EVERYBODY, one.adding.view, members_field(range(5), 5))
    assert not isinstance(one.ask(site_file, listed), str)  # it would open its own sum, alone
    zeros = np.zeros(one.sheet.shape, np.int64)
    for name in PEERS:
        state, _ = client.mask(one.states[name], one.shared.messages[name], one.sheet, zeros)
        with pytest.raises(SecureSumError, match="wrong_view"):
            client.agree(peers[name], state, listed)


def test_the_same_terms_in_other_words_are_the_same(plan, site_file, peers, change):
    told = {"noise_multiplier": 1.5, "rounds": 3, "seeded": True, "delta": 1e-3}
    sheets = []
    for clip in (1, 1.0):
        change(site_file, privacy=PrivacySection(mechanism=SPLIT.model_copy(update={"clip": clip}), **told))
        sheets.append(noisy_sheet(plan, promise_of(load_site(site_file), 30, 3).split))
    assert sheets[0].digest == sheets[1].digest != sheet_of(plan).digest


def test_colluding_sites_count_for_both_of_two_halves(site_file, plan, peers, change, said):
    """5 invited, least = 4 and a quarter of them colluding: 2 * 3 > 5, and 2 * 3 <= 5 + 1."""
    split = SPLIT.model_copy(update={"least": 3, "colluding": 0.34})
    change(site_file, privacy=PrivacySection(mechanism=split, noise_multiplier=1.5, rounds=3, seeded=True, delta=1e-3))
    assert Sum(plan, others=PEERS, threshold=3, peers=peers).join(site_file) == REFUSED
    assert said("a threshold of 3 of 5; with 1 colluding two halves of the others could open one input together")
    assert Sum(plan, "2", others=PEERS, threshold=4, peers=peers).join(site_file) == ""


def test_split_noise_without_a_registry_is_refused_when_the_site_opens(site_file, change):
    change(site_file, privacy=PrivacySection(mechanism=SPLIT, noise_multiplier=1.5, rounds=3, seeded=True, delta=1e-3))
    with pytest.raises(
        SiteConfigError, match=r"'client-sum-distributed' hides this site .* without policy.sum_registry"
    ):
        Node.open(site_file)


def test_a_second_run_over_the_same_rows_is_said_once_in_the_sites_log(site_file, plan, make_plan, change, caplog):
    def warned():
        return [record.getMessage() for record in caplog.records if "differ by one site" in record.getMessage()]

    change(site_file, policy={"secure_sum": "require"})
    Sum(plan).run(site_file)
    assert warned() == []
    elsewhere = make_plan(site_file, run="cd" * 16)
    Sum(elsewhere, "2").run(site_file)
    assert len(warned()) == 1
    assert f"run {'cd' * 16} asks for sums of private rows that answered run {'ab' * 16} before" in warned()[0]
    Sum(make_plan(site_file, run="cd" * 16, round=2), "3").run(site_file)
    Sum(make_plan(site_file, round=2), "4").run(site_file)  # the first run goes on
    assert len(warned()) == 1


def test_a_site_that_promises_or_may_vote_alone_does_not_say_so(site_file, plan, make_plan, change, caplog):
    Sum(plan).run(site_file)
    Sum(make_plan(site_file, run="cd" * 16), "2").run(site_file)
    change(site_file, policy={"secure_sum": "require"}, privacy=PrivacySection(epsilon=3.0, rounds=3, seeded=True))
    Sum(make_plan(site_file, run="ef" * 16), "3").run(site_file)
    assert not [record for record in caplog.records if "differ by one site" in record.getMessage()]
