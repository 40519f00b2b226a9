"""The round: quorum, failures, order of replies, memory; with a cohort that is a list of bytes."""

import subprocess
import sys

import numpy as np
import pytest

from server.checks import Failure
from server.rounds import Exchange, QuorumError, Reply, run_rounds
from strategies.aggregators import AGGREGATORS, build_aggregator
from strategies.messages import ClientReport, Refusal
from strategies.soft_labels import SoftLabels
from strategies.wire import decode_plan, encode_refusal, encode_report


def exchange(**changed):
    told = {
        "run": "ab" * 16,
        "seed": 3,
        "proxy_sha256": "a1" * 32,
        "classes_sha256": "b2" * 32,
        "classes": 3,
        "proxy_rows": 50,
        "codec": "float32",
        "rows_per_round": 8,
        "quorum": 0.5,
        "participation": 1.0,
    }
    return Exchange(**{**told, **changed})


class ScriptedCohort:
    """Clients that vote from a seeded generator, and misbehave as told: client -> function of its honest bytes."""

    def __init__(self, count=6, misbehave=None, order=1, classes=3):
        self.clients = [f"c{i:04}" for i in range(count)]
        self.misbehave, self.order, self.classes = misbehave or {}, order, classes
        self.plans = []

    def ask(self, plan, clients):
        decoded = decode_plan(plan)
        self.plans.append(decoded)
        for client in list(clients)[:: self.order]:
            rng = np.random.default_rng(int(client[1:]) * 1000 + decoded.round)
            votes = SoftLabels.from_logits(decoded.ask_rows, rng.normal(size=(len(decoded.ask_rows), self.classes)))
            honest = encode_report(ClientReport(client, decoded.round, votes), decoded)
            answer = self.misbehave.get(client, lambda blob: blob)(honest)
            for payload in answer if isinstance(answer, list) else [answer]:
                yield Reply(client, payload)


def bad(blob):
    return blob[:-1]


def run(cohort, rounds=3, rule="mean", **changed):
    return list(run_rounds(cohort, build_aggregator(rule, {}), exchange(**changed), rounds))


@pytest.mark.parametrize("rule", sorted(AGGREGATORS))
def test_the_order_of_replies_changes_no_bit_of_any_teacher(rule):
    forward, backward = run(ScriptedCohort(), rule=rule), run(ScriptedCohort(order=-1), rule=rule)
    for one, other in zip(forward, backward, strict=True):
        assert one.teacher.log_probs.tobytes() == other.teacher.log_probs.tobytes()


def test_each_plan_carries_the_teacher_of_the_round_before():
    cohort = ScriptedCohort()
    results = run(cohort)
    assert cohort.plans[0].teacher is None
    for plan, result in zip(cohort.plans[1:], results, strict=False):
        np.testing.assert_allclose(plan.teacher.log_probs, result.teacher.log_probs, atol=1e-6)
        assert plan.teacher.rows.tolist() == result.teacher.rows.tolist()


def test_a_bad_reply_is_that_clients_failure_and_the_teacher_is_that_of_the_others():
    spoiled = run(ScriptedCohort(misbehave={"c0001": bad}))
    without = ScriptedCohort()
    without.clients.remove("c0001")
    clean = run(without)
    for one, other in zip(spoiled, clean, strict=True):
        assert one.teacher.log_probs.tobytes() == other.teacher.log_probs.tobytes()
        assert [(failure.client, failure.reason) for failure in one.failures] == [("c0001", "truncated")]
        assert (one.replies, other.replies, other.failures) == (5, 5, ())


def test_under_quorum_the_round_fails_and_says_which_clients_and_why():
    wrong = {
        "c0000": bad,
        "c0001": lambda blob: Failure("c0001", "late"),
        "c0002": lambda blob: [],
        "c0003": lambda blob: encode_refusal(Refusal("c0003", 1, "no_policy"), "ab" * 16),
    }
    with pytest.raises(QuorumError) as caught:
        run(ScriptedCohort(misbehave=wrong))
    for told in ("c0000 (truncated)", "c0001 (late)", "c0002 (no_reply)", "c0003 (refused_no_policy)"):
        assert told in str(caught.value)
    assert "2 of 6 answers were usable and the quorum is 3" in str(caught.value)
    assert [failure.client for failure in caught.value.failures] == ["c0000", "c0001", "c0002", "c0003"]


@pytest.mark.parametrize(("quorum", "bad_clients", "holds"), [(0.5, 3, True), (0.5, 4, False), (1.0, 1, False)])
def test_the_quorum_is_a_share_of_the_asked_clients_rounded_up(quorum, bad_clients, holds):
    cohort = ScriptedCohort(misbehave={f"c{i:04}": bad for i in range(bad_clients)})
    if holds:
        assert len(run(cohort, quorum=quorum)) == 3
    else:
        with pytest.raises(QuorumError):
            run(cohort, quorum=quorum)


def test_nobody_at_all_is_a_failed_round_even_with_the_smallest_quorum():
    cohort = ScriptedCohort(misbehave={f"c{i:04}": bad for i in range(6)})
    with pytest.raises(QuorumError, match="0 of 6"):
        run(cohort, quorum=0.01)


def test_a_second_answer_and_an_uninvited_one_change_nothing():
    clean = run(ScriptedCohort())

    class Uninvited(ScriptedCohort):
        def ask(self, plan, clients):
            yield Reply("c9999", b"hello")
            yield from super().ask(plan, clients)

    noisy = run(Uninvited(misbehave={"c0002": lambda blob: [blob, blob, b"junk"]}))
    for one, other in zip(clean, noisy, strict=True):
        assert one.teacher.log_probs.tobytes() == other.teacher.log_probs.tobytes()
        assert one.upload_bytes == other.upload_bytes


def test_bytes_are_those_of_the_real_messages():
    class Counting(ScriptedCohort):
        up = down = 0

        def ask(self, plan, clients):
            self.down += len(plan) * len(clients)
            for reply in super().ask(plan, clients):
                self.up += len(reply.payload)
                yield reply

    cohort = Counting(misbehave={"c0003": bad})
    results = run(cohort)
    assert sum(result.upload_bytes for result in results) == cohort.up
    assert sum(result.download_bytes for result in results) == cohort.down


def test_participation_asks_a_share():
    cohort = ScriptedCohort(10)
    asked = []
    original = cohort.ask
    cohort.ask = lambda plan, clients: asked.append(tuple(clients)) or original(plan, clients)
    results = run(cohort, rounds=6, participation=0.3)
    assert {len(names) for names in asked} == {3}
    assert len(set(asked)) > 1
    assert {result.replies for result in results} == {3}


def test_a_resumed_run_goes_on_where_it_stopped():
    whole = run(ScriptedCohort(), rounds=5)
    cohort = ScriptedCohort()
    rest = list(
        run_rounds(
            cohort,
            build_aggregator("mean", {}),
            exchange(),
            5,
            done=2,
            teacher=whole[1].teacher,
            state=whole[1].state,
        )
    )
    assert [result.round for result in rest] == [3, 4, 5]
    for one, other in zip(whole[2:], rest, strict=True):
        assert one.teacher.log_probs.tobytes() == other.teacher.log_probs.tobytes()


def test_a_thousand_replies_of_a_thousand_rows_are_streamed():
    # Held at once they would be 40 MB of float32 votes and 40 MB of messages, growing with every copy; the
    # process is measured as a whole, and its growth must stay far below one copy of them.
    script = """
import sys
from simulations.worker import peak_bytes
sys.path.insert(0, "tests/server")
from test_rounds import ScriptedCohort, build_aggregator, exchange, run_rounds
def peak(clients):
    cohort = ScriptedCohort(clients, classes=10)
    settings = exchange(classes=10, proxy_rows=1000, rows_per_round=1000)
    list(run_rounds(cohort, build_aggregator("era", {}), settings, 1))
    return peak_bytes()
few, many = peak(10), peak(1000)
print(few, many)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    few, many = map(int, told.split())
    assert many < 500e6
    assert many - few < 20e6
