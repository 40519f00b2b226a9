"""Rounds whose votes the coordinator sees as one sum: exact, whoever drops out when, and however often it restarts."""

import json
from dataclasses import replace

import numpy as np
import pytest

from client.identity import Peers
from client.secure import SecureSums
from client.state import SiteState
from client.sum_wire import SumAnswer, SumRequest
from privacy.secure_sum.keys import identity_key
from privacy.secure_sum.messages import kind_of as sum_kind
from server.checkpoint import CheckpointError
from server.checks import Failure
from server.config import FederationConfig, StudentSettings
from server.replies import QuorumError, Reply
from server.rounds import run_rounds
from server.sum_store import SumStore
from strategies.aggregators import build_aggregator
from strategies.envelope import SUM_ANSWER, kind_of
from strategies.messages import ClientReport, LedgerHead, Refusal
from strategies.soft_labels import SoftLabels
from strategies.wire import decode_plan, encode_refusal, encode_report

CLASSES, PROXY = 3, 50


class Policy:
    """What sums look at of a site's policy."""

    sum_threshold, secure_sum = 2, "allow"


class Desk:
    """A site that votes from a seeded generator and keeps its part in sums as bytes."""

    def __init__(self, name, head=None):
        self.name, self.last, self.head = name, SiteState(run="ab" * 16), head
        self.code, self.trained = "", []

    def keep_sums(self, sums):
        self.last = replace(self.last, sums=sums)

    def read(self, blob):
        return decode_plan(blob, PROXY, CLASSES)

    def votes(self, plan):
        rng = np.random.default_rng(int(self.name[1:]) * 1000 + plan.round)
        return SoftLabels.from_logits(plan.ask_rows, 3 * rng.normal(size=(PROXY, CLASSES))[plan.ask_rows])

    def answer_plan(self, plan, blob, *, summed):
        assert summed
        if self.code:
            return encode_refusal(Refusal(self.name, plan.round, self.code), plan.run)
        self.trained.append(plan.round)
        return encode_report(ClientReport(self.name, plan.round, self.votes(plan), ledger=self.head), plan)


class SumCohort:
    """Desks behind the real messages.

    Attributes:
        silent: names that say nothing, by number of the exchange, from 1.
        spoil: what becomes of an answer, by (exchange, name).
        dies: the exchange in which the coordinator does, after so many replies.
        peers: the desks' registry and keys, by name; a desk that is not in it has none.
    """

    def __init__(self, count=5, order=1, known=False):
        self.clients = [f"c{i:04}" for i in range(count)]
        self.desks = {name: Desk(name) for name in self.clients}
        self.order, self.exchanges, self.silent, self.spoil = order, 0, {}, {}
        self.dies, self.plans, self.up, self.down, self.answers = None, {}, 0, 0, []
        keys = {name: bytes([number]) * 32 for number, name in enumerate(self.clients, start=1)}
        registry = {name: identity_key(key) for name, key in keys.items()}
        self.peers = {name: Peers(registry, key) for name, key in keys.items()} if known else {}

    def ask(self, blobs):
        self.exchanges += 1
        self.down += sum(map(len, blobs.values()))
        for number, name in enumerate(list(blobs)[:: self.order]):
            if self.dies == (self.exchanges, number):
                raise KeyboardInterrupt
            for part in SumRequest.decode(blobs[name]).parts:
                if part.plan:
                    plan = decode_plan(part.plan, PROXY, CLASSES)
                    self.plans.setdefault(plan.round, plan)
            if name in self.silent.get(self.exchanges, ()):
                continue
            answer = SecureSums(self.desks[name], Policy(), None, self.peers.get(name)).answer(blobs[name])
            answer = self.spoil.get((self.exchanges, name), lambda blob: blob)(answer)
            self.answers.append(answer)
            self.up += len(answer) if isinstance(answer, bytes) else 0
            yield Reply(name, answer)


def rounds_of(cohort, exchange, rounds=3, rule="mean", settings=None, *, store=None, done=0, standing=None, **changed):
    return list(
        run_rounds(
            cohort,
            build_aggregator(rule, settings or {}),
            exchange(secure_sum=True, **changed),
            rounds,
            done=done,
            standing=standing,
            sums=store,
        )
    )


def grid_mean(cohort, round_, names):
    """[rows, classes] the plain mean of votes on a grid of 1/4096, by hand."""
    plan = cohort.plans[round_]
    steps = [np.rint(np.minimum(cohort.desks[name].votes(plan).probabilities(), 1.0) * 4096) for name in names]
    return sum(steps) / 4096 / len(names)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("rule", "settings", "logits"),
    [
        ("mean", {}, lambda mean: np.log(mean)),
        ("era", {"temperature": 0.1}, lambda mean: mean / 0.1),
        ("enhanced-era", {"exponent": 2.0}, lambda mean: 2.0 * np.log(mean)),
    ],
)
def test_the_teacher_is_the_rule_on_the_plain_mean_of_the_quantised_votes(exchange, rule, settings, logits, order):
    cohort = SumCohort(order=order)
    results = rounds_of(cohort, exchange, 3, rule, settings)
    for result in results:
        mean = grid_mean(cohort, result.round, cohort.clients)
        expected = SoftLabels.from_logits(result.teacher.rows, logits(np.maximum(mean, 1e-12)))
        assert result.teacher.log_probs.tobytes() == expected.log_probs.tobytes()
        np.testing.assert_array_equal(result.teacher.rows, cohort.plans[result.round].ask_rows)
        assert (result.replies, result.failures) == (5, ())


def test_sharpening_and_the_ambiguity_filter_follow_the_opened_mean(exchange):
    plain, piped = SumCohort(), SumCohort()
    (mean,) = rounds_of(plain, exchange, 1)
    (result,) = rounds_of(piped, exchange, 1, "mean", {"then": {"name": "era", "temperature": 0.5}, "ambiguity": 1.0})
    clear = 2 * (1 - mean.teacher.probabilities().max(axis=1)) < 1.0
    assert 0 < clear.sum() < len(clear)
    np.testing.assert_array_equal(result.teacher.rows, mean.teacher.rows[clear])
    expected = SoftLabels.from_logits(result.teacher.rows, mean.teacher.probabilities()[clear] / 0.5)
    np.testing.assert_allclose(result.teacher.log_probs, expected.log_probs, atol=1e-6)


def test_r_rounds_take_2r_plus_2_exchanges_and_every_byte_is_counted(exchange):
    cohort = SumCohort()
    results = rounds_of(cohort, exchange, 4)
    assert cohort.exchanges == 2 * 4 + 2
    assert sum(result.upload_bytes for result in results) == cohort.up
    assert sum(result.download_bytes for result in results) == cohort.down


def test_among_sites_with_a_registry_it_is_one_exchange_a_round_more_and_the_same_teachers(exchange):
    plain, known = SumCohort(), SumCohort(known=True)
    reference, results = rounds_of(plain, exchange, 4), rounds_of(known, exchange, 4)
    assert known.exchanges == 3 * 4 + 2
    assert [r.teacher.log_probs.tobytes() for r in results] == [r.teacher.log_probs.tobytes() for r in reference]
    assert [(r.replies, r.failures) for r in results] == [(5, ())] * 4
    assert sum(result.upload_bytes for result in results) == known.up


@pytest.mark.parametrize(("stage", "in_sum"), [(1, 4), (2, 4), (3, 4), (4, 5), (5, 5)])
def test_one_of_five_with_a_registry_may_be_gone_from_any_stage_on(exchange, stage, in_sum):
    cohort = SumCohort(known=True)
    cohort.silent = {number: {"c0003"} for number in range(stage, 6)}
    (result,) = rounds_of(cohort, exchange, 1)
    there = [name for name in cohort.clients if in_sum == 5 or name != "c0003"]
    expected = SoftLabels.from_logits(result.teacher.rows, np.log(np.maximum(grid_mean(cohort, 1, there), 1e-12)))
    assert result.teacher.log_probs.tobytes() == expected.log_probs.tobytes()
    assert result.replies == in_sum
    assert [(failure.client, failure.reason) for failure in result.failures] == [("c0003", "no_reply")]


def test_who_does_not_sign_may_still_help_to_open(exchange):
    """c0001 misses the list and c0002 the opening: four sign, and four open."""
    cohort = SumCohort(known=True)
    cohort.silent = {4: {"c0001"}, 5: {"c0002"}}
    (result,) = rounds_of(cohort, exchange, 1)
    assert result.replies == 5
    assert [failure.detail for failure in result.failures] == [
        "its votes are in the sum, whose list it did not sign",
        "its votes are in the sum, which it did not help to open",
    ]


def test_a_list_that_too_few_sign_fails_the_round_and_nothing_is_opened(exchange):
    cohort = SumCohort(known=True)
    cohort.silent = {4: {"c0001", "c0003"}}
    with pytest.raises(QuorumError, match="3 of 5 clients signed the list of survivors and 4 are needed"):
        rounds_of(cohort, exchange, 1)
    assert cohort.exchanges == 4


def test_one_site_without_a_key_among_sites_with_a_registry_is_left_out_and_said(exchange):
    cohort = SumCohort(known=True)
    del cohort.peers["c0003"]
    (result,) = rounds_of(cohort, exchange, 1)
    (failure,) = result.failures
    assert (result.replies, failure.client) == (4, "c0003")
    assert failure.detail == "identity: keys without a signature, where others sign"


def test_one_site_with_a_registry_among_sites_without_takes_part_in_nothing(exchange):
    cohort = SumCohort(known=True)
    cohort.peers = {"c0003": cohort.peers["c0003"]}
    (result,) = rounds_of(cohort, exchange, 1)
    assert [(failure.client, failure.reason) for failure in result.failures] == [
        ("c0003", "refused_secure_sum_refused")
    ]


@pytest.mark.parametrize("replies", [0, 2, 4])
@pytest.mark.parametrize("dies", range(1, 9))
def test_with_a_registry_too_a_coordinator_that_dies_at_any_moment_ends_with_the_same_teachers(
    exchange, tmp_path, dies, replies
):
    """Two rounds are eight exchanges."""
    reference = [result.teacher.log_probs.tobytes() for result in rounds_of(SumCohort(), exchange, 2)]
    cohort, store, finished = SumCohort(known=True), SumStore(tmp_path / "sum.json"), []
    cohort.dies = (dies, replies)
    rule, told = build_aggregator("mean", {}), exchange(secure_sum=True)
    with pytest.raises(KeyboardInterrupt):
        finished.extend(run_rounds(cohort, rule, told, 2, sums=store))
    standing = finished[-1].standing if finished else None
    finished += rounds_of(cohort, exchange, 2, store=store, done=len(finished), standing=standing)
    assert [result.teacher.log_probs.tobytes() for result in finished] == reference
    assert [result.replies for result in finished] == [5, 5]


def test_a_coordinator_that_dies_while_it_opens_shows_the_very_signatures_again(exchange, tmp_path):
    """Two sites have opened with four signatures; asked with five, they would have refused."""
    cohort, store = SumCohort(known=True), SumStore(tmp_path / "sum.json")
    cohort.silent, cohort.dies = {4: {"c0004"}}, (5, 2)
    with pytest.raises(KeyboardInterrupt):
        rounds_of(cohort, exchange, 1, store=store)
    (result,) = rounds_of(cohort, exchange, 1, store=store)
    assert (cohort.exchanges, result.replies, result.failures) == (6, 5, ())


def test_no_report_leaves_a_site(exchange):
    cohort = SumCohort()
    rounds_of(cohort, exchange, 2)
    kinds = {kind_of(part) for blob in cohort.answers for part in SumAnswer.decode(blob).parts}
    assert {kind_of(blob) for blob in cohort.answers} == {SUM_ANSWER}
    assert kinds == {-1}  # no report nor refusal is inside
    assert all(sum_kind(part) >= 0 for blob in cohort.answers for part in SumAnswer.decode(blob).parts)


@pytest.mark.parametrize(("stage", "in_sum"), [(1, 4), (2, 4), (3, 4), (4, 5)])
def test_one_of_five_may_be_gone_from_any_stage_on(exchange, stage, in_sum):
    """t = ceil(10/3) = 4: who is gone before its input is missing in the sum, who is gone after it is not."""
    cohort = SumCohort()
    cohort.silent = {number: {"c0003"} for number in range(stage, 5)}
    (result,) = rounds_of(cohort, exchange, 1)
    there = [name for name in cohort.clients if in_sum == 5 or name != "c0003"]
    mean = grid_mean(cohort, 1, there)
    expected = SoftLabels.from_logits(result.teacher.rows, np.log(np.maximum(mean, 1e-12)))
    assert result.teacher.log_probs.tobytes() == expected.log_probs.tobytes()
    assert result.replies == in_sum
    assert [(failure.client, failure.reason) for failure in result.failures] == [("c0003", "no_reply")]


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_two_of_five_gone_fail_the_round_with_a_sentence(exchange, stage):
    cohort = SumCohort()
    cohort.silent = {number: {"c0001", "c0003"} for number in range(stage, 5)}
    with pytest.raises(QuorumError, match=r"round 1: secure sum, too_few: 3 of 5 clients .* and 4 are needed") as told:
        rounds_of(cohort, exchange, 1)
    assert sorted(failure.client for failure in told.value.failures) == ["c0001", "c0003"]


def test_who_misses_the_first_step_for_the_next_round_is_missing_there_and_then_back(exchange):
    cohort = SumCohort()
    cohort.silent = {4: {"c0002"}}  # the opening of round 1, and stage 2 of round 2
    results = rounds_of(cohort, exchange, 3)
    assert [result.replies for result in results] == [5, 4, 5]
    assert [[failure.client for failure in result.failures] for result in results] == [["c0002"], ["c0002"], []]


def test_a_next_round_that_too_few_prepare_for_begins_by_itself(exchange):
    def only_the_input(blob):
        answer = SumAnswer.decode(blob)
        return SumAnswer(answer.run, answer.round, answer.client, (answer.parts[0], b"?")).encode()

    cohort = SumCohort()
    cohort.spoil = {(3, "c0001"): only_the_input, (3, "c0002"): only_the_input}
    results = rounds_of(cohort, exchange, 2)
    assert [(result.replies, result.failures) for result in results] == [(5, ()), (5, ())]
    assert cohort.exchanges == 8


def _as_another(client="c0003", round_=1, run="ab" * 16):
    return lambda blob: SumAnswer(run, round_, client, SumAnswer.decode(blob).parts).encode()


SPOILT = {
    "bytes that are nothing": (lambda blob: b"x" * 40, "foreign"),
    "too many bytes": (lambda blob: blob + bytes(10**5), "too_large"),
    "a failure of the network": (lambda blob: Failure("c0003", "crashed"), "crashed"),
    "a refusal": (lambda blob: encode_refusal(Refusal("c0003", 1, "no_policy"), "ab" * 16), "refused_no_policy"),
    "another's refusal": (lambda blob: encode_refusal(Refusal("c0001", 1, "no_policy"), "ab" * 16), "wrong_client"),
    "another's name": (_as_another(client="c0001"), "wrong_client"),
    "another round": (_as_another(round_=2), "wrong_round"),
    "another run": (_as_another(run="cd" * 16), "wrong_run"),
    "no part": (lambda blob: SumAnswer("ab" * 16, 1, "c0003", ()).encode(), "shape"),
    "a part that is nothing": (lambda blob: SumAnswer("ab" * 16, 1, "c0003", (b"?" * 60,)).encode(), "secure_sum"),
}  # fmt: skip


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
@pytest.mark.parametrize("what", SPOILT)
def test_an_answer_that_is_not_believed_is_its_clients_failure_and_no_more(exchange, what, stage):
    spoil, reason = SPOILT[what]
    cohort = SumCohort()
    cohort.spoil = {(stage, "c0003"): spoil}
    (result,) = rounds_of(cohort, exchange, 1)
    assert [(failure.client, failure.reason) for failure in result.failures] == [("c0003", reason)]


def test_a_site_that_refuses_the_plan_is_missing_and_its_code_is_told(exchange):
    cohort = SumCohort()
    cohort.desks["c0004"].code = "budget_out"
    results = rounds_of(cohort, exchange, 2)
    assert [[failure.reason for failure in result.failures] for result in results] == [["refused_budget_out"]] * 2
    assert [result.replies for result in results] == [4, 4]


def test_the_ledgers_head_travels_with_the_input_and_comes_back_in_the_next_plan(exchange):
    cohort = SumCohort()
    cohort.desks["c0000"].head = LedgerHead(7, bytes(range(32)))
    heads = []
    original = cohort.desks["c0000"].read
    cohort.desks["c0000"].read = lambda blob: heads.append(original(blob).ledger) or original(blob)
    results = rounds_of(cohort, exchange, 2)
    assert results[0].standing.links.heads == {"c0000": LedgerHead(7, bytes(range(32)))}
    assert heads == [None, LedgerHead(7, bytes(range(32)))]


@pytest.mark.parametrize("replies", [0, 2, 4])
@pytest.mark.parametrize("dies", range(1, 7))
def test_a_coordinator_that_dies_at_any_moment_ends_with_the_same_teachers(exchange, tmp_path, dies, replies):
    """Two rounds are six exchanges. A sum that was to be opened is opened; every earlier one is begun anew."""
    reference = [result.teacher.log_probs.tobytes() for result in rounds_of(SumCohort(), exchange, 2)]
    cohort, store, finished = SumCohort(), SumStore(tmp_path / "sum.json"), []
    cohort.dies = (dies, replies)
    rule, told = build_aggregator("mean", {}), exchange(secure_sum=True)
    with pytest.raises(KeyboardInterrupt):
        finished.extend(run_rounds(cohort, rule, told, 2, sums=store))  # one by one, as checkpoints are made
    standing = finished[-1].standing if finished else None
    finished += rounds_of(cohort, exchange, 2, store=store, done=len(finished), standing=standing)
    assert [result.teacher.log_probs.tobytes() for result in finished] == reference
    assert [result.replies for result in finished] == [5, 5]


def test_a_coordinator_that_dies_before_its_checkpoint_opens_the_very_sum_again(exchange, tmp_path):
    cohort, store = SumCohort(), SumStore(tmp_path / "sum.json")
    (first,) = rounds_of(cohort, exchange, 1, store=store)
    exchanges = cohort.exchanges
    (again,) = rounds_of(cohort, exchange, 1, store=store)
    assert cohort.exchanges == exchanges + 1  # the opening, answered with the bytes of before
    assert again.teacher.log_probs.tobytes() == first.teacher.log_probs.tobytes()


def test_without_the_kept_sum_an_opened_round_cannot_be_had_again(exchange):
    cohort = SumCohort()
    rounds_of(cohort, exchange, 1)
    with pytest.raises(QuorumError, match="too_few: 0 of 5 clients sent keys"):
        rounds_of(cohort, exchange, 1)


@pytest.mark.parametrize(
    "broken",
    [
        {"roster": "AAAA"},
        {"roster": 3},
        {"session": ""},
        {"words": "AAAA"},
        {"survivors": 7},
        {"survivors": [99]},
        {"members": [98, 99]},
        "garbage",
        "[]",
        "{}",
    ],
)
def test_a_broken_store_is_a_broken_checkpoint_and_another_rounds_is_left_alone(exchange, tmp_path, broken):
    store = SumStore(tmp_path / "sum.json")
    cohort = SumCohort()
    (first,) = rounds_of(cohort, exchange, 1, store=store)
    rounds_of(cohort, exchange, 2, store=store, done=1, standing=first.standing)
    kept = json.loads(store.path.read_bytes())
    store.path.write_text(broken if isinstance(broken, str) else json.dumps({**kept, **broken}))
    with pytest.raises(CheckpointError, match=r"is broken \(.*\): restore it from a backup, or start anew"):
        rounds_of(SumCohort(), exchange, 2, store=store, done=1, standing=first.standing)


def test_fewer_clients_than_a_sum_takes_or_a_row_needs_fail_the_round(exchange):
    with pytest.raises(QuorumError, match="2 clients are asked and a sum takes 3 or more"):
        rounds_of(SumCohort(2), exchange, 1)
    with pytest.raises(QuorumError, match="5 clients are asked and 6 must stay"):
        rounds_of(SumCohort(), exchange, 1, row_quorum=6)


def test_a_quorum_above_two_thirds_is_kept(exchange):
    cohort = SumCohort()
    cohort.silent = {3: {"c0003"}}
    with pytest.raises(QuorumError, match="4 of 5 clients sent an input and 5 are needed"):
        rounds_of(cohort, exchange, 1, quorum=0.9)


REFUSED = {
    "mode='async'": {"mode": "async"},
    "uplink='quantised:1\\+delta\\+entropy'": {"uplink": "quantised:1+delta+entropy"},
    "choice='disagreement'": {"choice": "disagreement"},
}


def federation(exchange, aggregator="mean", settings=None, keep_votes=False, **changed):
    from distillation.learner import Training

    student = StudentSettings(model="linear", training=Training(), distil_epochs=1, best_metric="accuracy")
    return FederationConfig(
        exchange=exchange(secure_sum=True, **changed),
        rounds=1,
        clients=5,
        aggregator=aggregator,
        aggregator_settings=settings or {},
        student=student,
        proxy="p",
        test="",
        device="cpu",
        timeout_s=70.0,
        keep_votes=keep_votes,
    )


def test_a_coordinators_settings_refuse_what_needs_single_votes(exchange):
    assert federation(exchange).exchange.secure_sum
    for said, changed in REFUSED.items():
        with pytest.raises(ValueError, match=f"one sum and no single vote, and .*{said}"):
            federation(exchange, **changed)
    with pytest.raises(ValueError, match="keep_votes=true keeps single votes: set it to false"):
        federation(exchange, keep_votes=True)
    for rule, settings in (("median", {}), ("logit-mean", {}), ("mean", {"weight": "entropy"})):
        with pytest.raises(ValueError, match=f"aggregator '{rule}' needs single votes or weights: take mean, era"):
            federation(exchange, rule, settings)
