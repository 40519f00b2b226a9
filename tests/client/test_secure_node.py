"""A site in secure sums: what it gives it gives once, whatever process answers, and to sums that its owner allows."""

import json

import numpy as np
import pytest

from client.config import PartSection, PrivacySection, SelectorSection, load_site, write_site
from client.node import Node
from client.promise import promise_of
from client.secure import Kept, check_attempts
from client.state import StateStore
from client.sum_wire import NoisyInput, SumAnswer, noisy_sheet, steps_of
from distillation.learner import TorchLearner
from privacy.ledger import Ledger
from privacy.noise import OsEntropy
from privacy.secure_sum import client, server
from privacy.secure_sum.errors import SecureSumError
from privacy.secure_sum.messages import invitation
from privacy.secure_sum.session import Session, Site
from strategies.messages import Refusal
from strategies.wire import decode_answer, encode_plan
from tests.client.summing import OTHERS, Sum

RUN = "ab" * 16


@pytest.fixture
def plan(site_file, make_plan):
    return make_plan(site_file)


@pytest.fixture
def untouched(monkeypatch):
    """A function: from then on every look at a private row is an error."""

    def arm():
        for phase in ("fit", "_fit_privately", "distil", "fit_public"):
            monkeypatch.setattr(TorchLearner, phase, lambda *_, **__: pytest.fail("a model was trained"))

    return arm


def promised(site_file, change, **told):
    change(site_file, privacy=PrivacySection(**{"epsilon": 3.0, "rounds": 3, "seeded": True, **told}))


def test_the_sum_of_zeros_and_this_sites_votes_is_what_it_would_have_reported(site_file, plan, forget):
    told = Sum(plan).run(site_file)
    forget(site_file)
    report = decode_answer(Node.open(site_file).answer(encode_plan(plan)))
    np.testing.assert_array_equal(told, steps_of(report, plan))
    assert abs(told.sum(axis=1) - 4096).max() <= 2


def test_the_same_message_gets_the_same_bytes_whatever_process_answers_and_trains_once(site_file, plan, untouched):
    one = Sum(plan)
    one.join(site_file)
    assert one.ask(site_file, invitation(one.session)) == one.ask(site_file, invitation(one.session))
    one = Sum(plan, "2")
    requests = []
    original = one.ask
    one.ask = lambda *asked: requests.append((asked, said := original(*asked))) or said
    one.run(site_file)
    untouched()
    assert [original(*asked) == said for asked, said in requests] == [True] * 4


@pytest.mark.parametrize("fails", range(1, 7))
def test_a_disk_that_refuses_at_any_write_changes_nothing_in_the_end(site_file, plan, monkeypatch, fails):
    """A run of one sum writes six times: four steps, the count of the plan and its answer."""
    saves, save = [], StateStore.save

    def failing(store, state, after):
        saves.append(after)
        if len(saves) == fails:
            raise OSError("the disk is full")
        save(store, state, after)

    monkeypatch.setattr(StateStore, "save", failing)
    one = Sum(plan)
    refused = []
    ask = one.ask

    def again(*asked):
        said = ask(*asked)
        if isinstance(said, str):
            refused.append(said)
            said = ask(*asked)
        return said

    one.ask = again
    told = one.run(site_file)
    assert refused == ["storage_error"]
    monkeypatch.undo()
    report = decode_answer(Node.open(site_file).answer(encode_plan(plan)))
    np.testing.assert_array_equal(told, steps_of(report, plan))


def test_a_second_sum_before_the_first_was_opened_gets_the_same_votes_untrained(site_file, plan, untouched):
    first = Sum(plan).begun(site_file)
    assert first.give(site_file) == ""
    untouched()
    second = Sum(plan, "2")
    told = second.run(site_file)
    report = decode_answer(Node.open(site_file).answer(encode_plan(plan)))
    np.testing.assert_array_equal(told, steps_of(report, plan))
    assert first.open(site_file) == "secure_sum_refused"  # given up when the second began


def test_a_round_whose_sum_was_opened_is_over(site_file, plan, make_plan, plans):
    later = plans(site_file, make_plan, 2)
    Sum(plan).run(site_file)
    assert Sum(plan, "2").join(site_file) == "secure_sum_refused"
    Sum(later[1]).run(site_file)
    assert Sum(plan, "3").join(site_file) == "secure_sum_refused"


def test_no_input_to_two_sums_that_could_both_be_opened():
    def session(clients, threshold):
        return Session(RUN, 1, "1" * 32, tuple(sorted(clients)), threshold)

    check_attempts(session("abcde", 4), [session("abcde", 4), session("abcdf", 4)])  # 8 > 5, 8 > 6
    check_attempts(session("abcde", 4), [])
    with pytest.raises(SecureSumError, match="3 and 4 for two sums of round 1 among 7 clients: both could be opened"):
        check_attempts(session("abcd", 3), [session("abefg"[:5], 4)])
    with pytest.raises(SecureSumError, match="100 sums of round 1 were begun"):
        check_attempts(session("abcde", 4), [session("abcde", 4)] * 100)


def test_an_input_is_not_given_where_single_votes_could_be_told_and_nothing_is_trained_for_it(
    site_file, plan, untouched
):
    assert Sum(plan).begun(site_file).give(site_file) == ""
    untouched()
    other = Sum(plan, "2", others=("other-3", "other-4")).begun(site_file)  # 2 + 2 thresholds, 5 clients
    assert other.give(site_file) == "secure_sum_refused"


def test_a_plan_of_another_round_or_run_is_refused_before_a_row_is_touched(site_file, plan, make_plan, untouched):
    one = Sum(plan).begun(site_file)
    untouched()
    for blob in (encode_plan(make_plan(site_file, round=2)), encode_plan(make_plan(site_file, run="cd" * 16))):
        assert one.ask(site_file, one.shared.messages["site-0"], blob) == "secure_sum_refused"
    assert one.ask(site_file, one.shared.messages["site-0"], b"no plan") == "unreadable_plan"


def test_steps_out_of_order_and_messages_of_nobody_are_refused(site_file, plan, untouched):
    untouched()
    one, stranger = Sum(plan).begun(site_file), Sum(plan, "3")
    stranger.keyed = server.keyed(
        stranger.session,
        {name: client.join(Site(name), stranger.session, OsEntropy())[1] for name in stranger.session.clients},
    )
    assert one.ask(site_file, stranger.keyed.message) == "secure_sum_refused"
    assert one.ask(site_file, b"anything") == "secure_sum_refused"
    assert Sum(plan, others=("a", "b"), nonce="4").ask(site_file, b"") == "secure_sum_refused"
    assert decode_answer(Node.open(site_file).answer(one.request()[:-5] + b"12345")).code == "unreadable_plan"


def test_who_requires_a_secure_sum_answers_no_plan_alone(site_file, plan, make_plan, change, code_of, untouched):
    change(site_file, policy={"secure_sum": "require"})
    Sum(plan).run(site_file)
    untouched()
    assert code_of(Node.open(site_file), plan) == "secure_sum_required"  # the stored answer stays, too
    assert code_of(Node.open(site_file), make_plan(site_file, round=2)) == "secure_sum_required"


def test_a_plan_without_rows_lets_no_vote_leave_and_needs_no_sum(site_file, make_plan, change):
    change(site_file, policy={"secure_sum": "require"})
    nothing = make_plan(site_file, ask_rows=np.empty(0, np.int64))
    assert not isinstance(decode_answer(Node.open(site_file).answer(encode_plan(nothing))), Refusal)


def test_the_owner_says_how_few_may_stay(site_file, plan, change):
    change(site_file, policy={"sum_threshold": 3})
    assert Sum(plan).join(site_file) == "secure_sum_refused"
    assert Sum(plan, threshold=3).join(site_file) == ""


def test_without_a_policy_no_sum_is_joined(site_file, plan):
    write_site(site_file, load_site(site_file).model_copy(update={"policy": None}))
    assert Sum(plan).join(site_file) == "no_policy"


def test_what_cannot_be_summed_is_refused_before_a_row_is_touched(site_file, make_plan, change, untouched):
    untouched()
    told = make_plan(site_file, uplink="quantised:1+delta+entropy")
    assert Sum(told).begun(site_file).give(site_file) == "unsupported"
    change(site_file, policy={"release": ["scores"]}, selector=SelectorSection(name="certainty"))
    scored = make_plan(site_file, wants=("scores",))
    assert Sum(scored, "2").begun(site_file).give(site_file) == "unsupported"


def test_a_private_site_pays_once_for_a_round_however_many_sums_it_takes(site_file, plan, change):
    promised(site_file, change)
    first = Sum(plan).begun(site_file)
    assert first.give(site_file) == ""
    head = SumAnswer.decode(first.whole).ledger
    Sum(plan, "2").run(site_file)
    with Ledger.open(site_file.parent / "ledger.sqlite", durable=False) as ledger:
        assert [row.kind for row in ledger.rows()] == ["OPEN", "PLAN", "SPENT", "SEALED"]
        ledger.check(head.seq, head.digest)


SPLIT = PartSection(name="client-sum-distributed", clip=1.0, clients=3, least=2, colluding=0.0)


@pytest.fixture
def noisy(site_file, plan, register):
    """A function: a sum on the sheet of this site's split noise, among peers that it knows; and the mechanism."""
    peers = register({"site-0": site_file}, OTHERS)

    def make(nonce="1", plan=plan, **told):
        split = promise_of(load_site(site_file), 30, 3).split
        return Sum(plan, nonce, sheet=noisy_sheet(plan, split), peers=peers, **told), split

    return make


@pytest.mark.parametrize("seeded", [True, False])
def test_split_noise_is_drawn_once_paid_once_and_stays_the_same_in_another_sum(site_file, plan, change, noisy, seeded):
    promised(site_file, change, mechanism=SPLIT, seeded=seeded)
    one, split = noisy()
    assert one.begun(site_file).give(site_file) == ""
    told = noisy("2")[0].run(site_file)
    assert Sum(plan, "3").join(site_file) == "secure_sum_refused"  # opened: no third one
    stored = StateStore(site_file.parent / "state", durable=False).load().answer
    np.testing.assert_array_equal(NoisyInput.decode(stored).steps, told)  # beside inputs of zeros
    with Ledger.open(site_file.parent / "ledger.sqlite", durable=False) as ledger:
        assert ledger.terms.unit == "client"
        assert [event.noise_multiplier for event in ledger.events()] == [split.noise_multiplier]
    clipped = np.linalg.norm(told * split.grid)
    share = split.sensitivity(30) * split.noise_multiplier / np.sqrt(split.honest)
    assert clipped > 0.5 * share * np.sqrt(told.size)  # noise, and not the clipped difference alone


def test_a_share_of_noise_leaves_in_no_other_way(site_file, plan, change, code_of, untouched, noisy):
    promised(site_file, change, mechanism=SPLIT)
    untouched()
    assert code_of(Node.open(site_file), plan) == "secure_sum_required"
    change(site_file, privacy=PrivacySection(epsilon=3.0, seeded=True, mechanism=SPLIT.model_copy(update={"least": 3})))
    assert noisy()[0].join(site_file) == "secure_sum_refused"  # t = 2 < least = 3


def test_who_lost_its_state_gives_votes_that_were_in_a_sum_to_no_other_sum(site_file, make_plan, change, forget, noisy):
    """Its ledger still has them; whether their sum was opened, nobody here knows."""
    promised(site_file, change, mechanism=SPLIT)
    noisy()[0].run(site_file)
    forget(site_file)
    assert noisy("2")[0].begun(site_file).give(site_file) == "release_lost"
    later = noisy("3", make_plan(site_file, round=2))[0]
    assert later.run(site_file).shape == (30, 3)


def test_a_message_of_another_run_makes_no_site_forget_that_a_sum_is_over(site_file, plan, make_plan):
    Sum(plan).run(site_file)
    elsewhere = make_plan(site_file, run="cd" * 16)
    assert Sum(elsewhere, "2").join(site_file) == ""
    assert Sum(plan, "3").join(site_file) == "secure_sum_refused"
    assert Sum(elsewhere, "4").join(site_file) == ""
    assert Sum(plan, "5").join(site_file) == "secure_sum_refused"


def test_a_whole_run_in_between_makes_no_site_forget_that_a_sum_is_over(site_file, plan, make_plan):
    elsewhere = make_plan(site_file, run="cd" * 16)
    given = Sum(plan).begun(site_file)
    assert given.give(site_file) == ""
    Sum(elsewhere, "2").run(site_file)
    other = Sum(plan, "3", others=("other-3", "other-4")).begun(site_file)  # 2 + 2 thresholds, 5 clients
    assert other.give(site_file) == "secure_sum_refused"
    Sum(plan, "4").run(site_file)
    Sum(make_plan(site_file, run="ef" * 16), "5").run(site_file)
    assert Sum(plan, "6").join(site_file) == "secure_sum_refused"
    assert Sum(elsewhere, "7").join(site_file) == "secure_sum_refused"


def test_what_a_site_keeps_of_its_sums_is_read_as_it_was_written(site_file, plan):
    Sum(plan).run(site_file)
    stored = json.loads(StateStore(site_file.parent / "state", durable=False).load().sums)
    assert list(stored) == [RUN]
    kept = Kept.read(RUN, stored[RUN])
    assert (kept.run, kept.opened, kept.given) == (RUN, 1, {})
    assert kept.plain() == stored[RUN]
    assert "state" not in repr(kept)
