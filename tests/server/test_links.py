"""Any sequence of joins, absences and returns leaves every client with the teacher of a world without differences."""

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from client.memory import Memory
from client.teaching import empty_table, teacher_of
from privacy.policy import PolicyError
from server.checks import Failure
from server.exchange import Exchange
from server.links import News
from server.rounds import QuorumError, Reply, run_rounds
from server.standing import Standing
from strategies.aggregators.mean import Mean
from strategies.believing import believe_symbols, vote_symbols
from strategies.codecs import link_named
from strategies.messages import ClientReport, Refusal
from strategies.soft_labels import SoftLabels
from strategies.wire import decode_plan, encode_refusal, encode_report, plan_round

TOTAL, CLASSES = 14, 4
CLIENTS = ["c0", "c1", "c2", "c3"]
# What becomes of one client in one round. `lost-answer`: computed and stored, and it never arrives. `back`: its disk is
# an older backup. `wiped`: it has no disk at all. `late`: the answer comes two exchanges later.
EVENTS = ["ok", "ok", "ok", "lost-plan", "lost-answer", "back", "wiped", "late"]


def through_a_codec(labels, spec):
    """What a receiver without cache or delta makes of these labels."""
    return believe_symbols(labels.rows, vote_symbols(labels, spec), spec, CLASSES)


@dataclass
class State:
    """What is on a site's disk."""

    round: int = 0
    plan: str = ""
    answer: bytes = b""
    memory: Memory = field(default_factory=Memory)


class Site:
    """client.node without a network: the same memory, the same teaching, the same order."""

    def __init__(self, name):
        self.name, self.state, self.disks = name, State(), [State()]
        self.said = {}  # votes by round
        self.whole = True  # nothing happened to it that may cost a key frame
        self.applied = self.delivered = 0  # the last difference, and the last answer, that the coordinator knows of

    def votes(self, plan):
        """Labels that change slowly, so that differences are small; some rows are abstained from."""
        rows = plan.ask_rows[[(row * 7 + plan.round + int(self.name[1])) % 5 > 0 for row in plan.ask_rows]]
        logits = np.zeros((TOTAL, CLASSES))
        logits[np.arange(TOTAL), (np.arange(TOTAL) + plan.round // 3 * (np.arange(TOTAL) % 2)) % CLASSES] = 2.0
        return SoftLabels.from_logits(rows, (logits + int(self.name[1]) * 0.01)[rows])

    def answer(self, blob, expected):
        plan, digest = decode_plan(blob, TOTAL, CLASSES), hashlib.sha256(blob).hexdigest()
        if self.state.round == plan.round:
            assert self.state.plan == digest, "a second, different plan for one round"
            return self.state.answer
        assert self.state.round < plan.round, "a plan of an earlier round"
        memory = Memory.of_tensors(self.state.memory.tensors())  # as from disk
        if self.whole and plan.sync is not None:
            assert plan.sync.base == self.applied, "a longer difference than needed"
            assert set(plan.sync.changed.tolist()) <= set(plan.sync.rows.tolist()), (
                "rows that the teacher does not name"
            )
        if self.whole and link_named(plan.uplink).delta:
            assert plan.have == self.delivered, "a key frame where a difference would do"
        try:
            teacher, told = teacher_of(plan, memory.told, TOTAL, lambda rows: pytest.fail("nothing to choose"))
        except PolicyError as error:
            if self.whole or error.code != "need_key":
                pytest.fail(f"refused without a reason: {error}")
            return encode_refusal(Refusal(self.name, plan.round, error.code), plan.run)
        # THE property.
        assert (teacher is None) == (expected is None)
        if teacher is not None:
            assert teacher.rows.tolist() == expected.rows.tolist()
            assert teacher.log_probs.tobytes() == expected.log_probs.tobytes()
        votes = self.votes(plan)
        self.said[plan.round] = votes
        answer = encode_report(ClientReport(self.name, plan.round, votes), plan, memory.sent)
        sent = memory.sent
        if link_named(plan.uplink).delta:
            before = sent if sent is not None and sent.round == plan.have else empty_table(plan, TOTAL, plan.uplink)
            sent = before.changed(plan.round, votes.rows, vote_symbols(votes, plan.uplink))
        self.state = State(plan.round, digest, answer, replace(memory, told=told, sent=sent))
        self.disks.append(self.state)
        return answer

    def knows_that_it_was_heard(self, plan):
        self.whole, self.delivered = True, plan.round
        if plan.sync is not None:
            self.applied = plan.round


class World:
    """The network between coordinator and sites, and everything that may go wrong in it."""

    def __init__(self, exchange, script, joins):
        self.exchange, self.script, self.joins = exchange, script, joins
        self.sites = {name: Site(name) for name in CLIENTS}
        self.standing, self.exchanges, self.held, self.calm = Standing.new(exchange), 0, [], False

    @property
    def clients(self):
        return [name for name, join in zip(CLIENTS, self.joins, strict=True) if join <= self.exchanges]

    def ask(self, plans):
        teacher = self.standing.teacher
        expected = None if teacher is None else through_a_codec(teacher, self.exchange.downlink)
        events = dict(zip(CLIENTS, self.script[self.exchanges % len(self.script)], strict=True))
        self.exchanges += 1
        due = [held for held in self.held if held[0] <= self.exchanges]
        self.held = [held for held in self.held if held[0] > self.exchanges]
        for _, client, answer, plan in due:
            self.sites[client].whole = False  # whether it still counts is the coordinator's business
            yield Reply(client, answer, plan.round)
        for client, blob in plans.items():
            yield from self._exchange(client, blob, "ok" if self.calm else events[client], expected)

    def _exchange(self, client, blob, event, expected):
        site, plan = self.sites[client], decode_plan(blob, TOTAL, CLASSES)
        if event in ("back", "wiped"):
            site.disks = site.disks[: 1 if event == "wiped" else max(1, len(site.disks) - 2)]
            site.state, site.whole = site.disks[-1], False
        if event == "lost-plan":
            yield Reply(client, Failure(client, "no_reply"))
            return
        answer = site.answer(blob, expected)
        if event == "lost-answer":
            site.whole = False
            yield Reply(client, Failure(client, "transport"))
        elif event == "late" and self.exchange.mode == "async":
            site.whole = False
            self.held.append((self.exchanges + 2, client, answer, plan))
            yield Reply(client, Failure(client, "late"))
        else:
            if site.state.round == plan.round:
                site.knows_that_it_was_heard(plan)
            else:
                site.whole, site.applied, site.delivered = True, 0, 0  # it refused: next comes everything
            yield Reply(client, answer)

    def keep(self, report, ballot):
        """What the coordinator believes is what the site meant, in this round or in an earlier one."""
        said = [(round_, through_a_codec(votes, self.exchange.uplink)) for round_, votes in self._said(report)]
        meant = {(row, round_): label for round_, votes in said for row, label in _labels(votes)}
        for row, label in _labels(report.soft_labels):
            new = (row, ballot.round) in meant
            assert label in [
                told for (of, round_), told in meant.items() if of == row and new == (round_ == ballot.round)
            ]

    def _said(self, report):
        said = self.sites[report.client].said
        return [(round_, votes) for round_, votes in said.items() if round_ <= report.round]

    def rounds(self, count, resumes, crashes):
        """Run; before `resumes` the coordinator is read from its checkpoint, rounds after `crashes` run twice."""
        done, going, failed = 0, None, 0
        while done < count:
            if going is None or done in resumes:
                arrays = {key: np.copy(value) for key, value in self.standing.arrays().items()}
                self.standing = Standing.of_arrays(arrays, self.exchange)
                self.held = []  # a coordinator that begins anew has no open requests
                going = run_rounds(
                    self, Mean(), self.exchange, count, done=done, standing=self.standing, keep=self.keep
                )
            try:
                result = next(going)
            except QuorumError as error:
                # The operator resumes; this time nothing more goes wrong.
                self.standing = replace(self.standing, links=self.standing.links.after(News(lost=set(error.lost))))
                going, failed, self.calm = None, failed + 1, True
                assert failed < 4, "a run that can never be resumed"
                self._unknown()
                continue
            self.calm, failed = False, 0
            if done in crashes:
                crashes = crashes - {done}
                going = None  # the answers were heard, and nothing was written down
                self._unknown()
                continue
            self.standing, done = result.standing, result.round
            assert result.standing.links.heard.keys() <= self.sites.keys()

    def _unknown(self):
        for site in self.sites.values():
            site.whole = False


def _labels(votes):
    return zip(votes.rows.tolist(), (label.tobytes() for label in votes.log_probs), strict=True)


def settings_of(**changed):
    told = {
        "run": "ab" * 16,
        "seed": 3,
        "proxy_sha256": "a1" * 32,
        "classes_sha256": "b2" * 32,
        "classes": CLASSES,
        "proxy_rows": TOTAL,
        "uplink": "float16",
        "downlink": "float16",
        "rows_per_round": 6,
        "quorum": 0.01,
        "participation": 1.0,
        "row_quorum": 1,
        "patience": 3,
    }
    return Exchange(**{**told, **changed})


SCRIPTS = st.lists(st.lists(st.sampled_from(EVENTS), min_size=4, max_size=4), min_size=1, max_size=12)
CALM = [["ok"] * 4]


@pytest.mark.parametrize("uplink", ["float16", "quantised:1+delta+entropy"])
@pytest.mark.parametrize(
    ("downlink", "durations"),
    [
        ("float32+delta+entropy", [0, 3]),
        ("quantised:1+delta+entropy", [0, 5]),
        ("float16", [0, 1, 3, 5, 50]),
    ],
)
@given(
    duration=st.integers(0, 4),
    choice=st.sampled_from(["random", "fixed", "epoch", "disagreement"]),
    participation=st.sampled_from([0.4, 1.0]),
    mode=st.sampled_from(["sync", "async"]),
    script=SCRIPTS,
    joins=st.tuples(st.just(0), *[st.sampled_from([0, 0, 3, 7])] * 3),
    resumes=st.sets(st.integers(1, 11), max_size=3),
    crashes=st.sets(st.integers(1, 11), max_size=2),
)
@example(0, "random", 1.0, "sync", CALM, (0, 0, 0, 0), set(), set())
@example(0, "random", 1.0, "sync", [["wiped"] * 4, *CALM], (0, 0, 0, 0), set(), set())
@settings(max_examples=40)
def test_every_answered_plan_gave_the_teacher_of_a_world_without_cache_or_delta(
    uplink, downlink, durations, duration, choice, participation, mode, script, joins, resumes, crashes
):
    exchange = settings_of(
        uplink=uplink,
        downlink=downlink,
        cache_rounds=durations[duration % len(durations)],
        choice=choice,
        participation=participation,
        mode=mode,
    )
    World(exchange, script, joins).rounds(12, resumes, crashes)


def test_two_hundred_rounds_at_forty_per_cent_participation():
    exchange = settings_of(cache_rounds=10, participation=0.4, downlink="quantised:2+delta+entropy")
    rng = np.random.default_rng(1)
    script = rng.choice(["ok"] * 12 + ["lost-plan", "lost-answer", "wiped", "back"], (200, 4)).tolist()
    World(exchange, script, (0, 0, 0, 0)).rounds(200, {50, 51, 120}, {80})


def test_a_plan_carries_its_round():
    assert plan_round(b"x" * 26 + b"\x07\0\0\0rest") == 7
