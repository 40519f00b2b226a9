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
from server.checks import Failure, check_answer
from server.exchange import Exchange
from server.links import Links, News
from server.rounds import QuorumError, Reply, run_rounds
from server.standing import Standing
from strategies.aggregators.mean import Mean
from strategies.codecs import link_named
from strategies.messages import ClientReport, Refusal, RoundPlan
from strategies.soft_labels import SoftLabels
from strategies.tables import Table
from strategies.wire import (
    believe_symbols,
    decode_answer,
    decode_plan,
    encode_refusal,
    encode_report,
    plan_round,
    vote_symbols,
)

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


def soft(rows, seed=0):
    rows = np.array(rows, np.int64)
    return SoftLabels.from_logits(rows, np.random.default_rng(seed).normal(size=(len(rows), CLASSES)))


def applied(links, client, round_, rows):
    """After the client carried out the plan of this round, whose teacher was on these rows."""
    return links.after(News(applied={client: (round_, links.missing(client, np.array(rows))[1])}))


def missing(links, client, rows):
    base, news = links.missing(client, np.array(rows))
    return base, news.tolist()


def test_only_rows_whose_symbols_change_travel_again():
    spec = "quantised:1+delta+entropy"
    sure = np.full((TOTAL, CLASSES), -3.0)
    sure[:, 1] = 3.0
    first = SoftLabels.from_logits(np.arange(10), sure[:10])
    links = applied(Links.new(TOTAL, CLASSES, spec).published(2, first, spec), "a", 2, range(10))
    sure[[3, 5], 1], sure[[3, 5], 2] = -3.0, 3.0
    links = links.published(3, SoftLabels.from_logits(np.arange(12), sure[:12]), spec)
    assert missing(links, "a", range(12)) == (2, [3, 5, 10, 11])  # two labels are others, two are new
    assert missing(links, "b", range(12)) == (0, list(range(12)))  # it never answered
    # a label whose symbols are those of a row that was never sent is news all the same
    zeros = SoftLabels.from_logits(np.array([13]), -sure[13:] * 0 + [3.0, 0, 0, 0])
    assert missing(links.published(4, zeros, spec), "a", [13]) == (2, [13])


def test_a_difference_is_about_the_teachers_rows_however_long_somebody_was_away():
    spec = "float16+delta+entropy"
    links = applied(Links.new(TOTAL, CLASSES, spec).published(1, soft(range(TOTAL)), spec), "a", 1, range(TOTAL))
    for round_ in range(2, 300):
        links = links.published(round_, soft(sorted({round_ % TOTAL, 3}), round_), spec)
    assert missing(links, "a", [3]) == (1, [3])
    links = applied(links, "a", 300, [3])
    assert missing(links, "a", [3]) == (300, [])
    assert missing(links, "a", range(TOTAL)) == (300, [row for row in range(TOTAL) if row != 3])


# One round: what every row's label is by now, the teacher's rows, and what each client does with its plan.
DID = st.sampled_from(["answers", "away", "late", "lost"])
ROUNDS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=6, max_size=6),
        st.sets(st.integers(0, 5)),
        st.tuples(DID, DID, DID),
    ),
    max_size=15,
)


@given(ROUNDS)
@settings(max_examples=200)
def test_what_a_client_lacks_is_what_a_journal_of_every_message_says(rounds):
    spec, names = "quantised:1+delta+entropy", ("a", "b", "c")
    links, now, version = Links.new(6, 3, spec), {}, dict.fromkeys(range(6), 0)
    journal, due = {name: [] for name in names}, []  # (round, rows) that each is known to have carried out
    for round_, (labels, named, did) in enumerate(rounds, 2):
        rows = np.array(sorted(named), np.int64)
        links = links.published(round_, SoftLabels.from_logits(rows, 5.0 * np.eye(3)[np.array(labels)[rows]]), spec)
        for row in named:
            version[row] = version[row] if now.get(row) == labels[row] else round_
            now[row] = labels[row]
        news = News()
        for name in [name for name, _ in due]:
            news.applied[name] = dict(due)[name]
            journal[name].append(news.applied[name])
        busy, due = set(news.applied), []
        for name, event in zip(names, did, strict=True):
            if name in busy:
                continue  # its late answer came, and nobody asked it
            base, lacks = links.missing(name, rows)
            carried = {row: told for told, said in journal[name] for row in said.tolist()}
            assert lacks.tolist() == [row for row in rows.tolist() if carried.get(row, 0) < version[row]]
            assert base == (journal[name][-1][0] if journal[name] else 0)
            if event == "answers":
                news.applied[name] = round_, lacks
                journal[name].append((round_, lacks))
            elif event == "late":
                due.append((name, (round_, lacks)))
            elif event == "lost":
                news.lost.add(name)
                journal[name] = []
        links = links.after(news)
        links = Links.of_arrays(links.arrays())


def test_a_vote_that_travels_itself_lets_neither_end_forget_the_other_rows():
    spec, total = "quantised:1+delta+entropy", 400
    noise = np.random.default_rng(5).normal(size=(200, CLASSES))
    alike = np.tile([3.0, 0.0, 0.0, 0.0], (200, 1))
    held, sent, literal = None, None, []
    # Rounds 1 and 4 vote on the upper half; 2 and 3 on the lower one, at first as noise and then all for one class.
    for round_, at, logits in ((1, 200, noise), (2, 0, noise[::-1]), (3, 0, alike), (4, 200, noise)):
        rows = np.arange(at, at + 200)
        votes, have = SoftLabels.from_logits(rows, logits), round_ - 1
        plan = RoundPlan("ab" * 16, round_, "a1" * 32, "b2" * 32, CLASSES, rows, uplink=spec, have=have)
        answer = encode_report(ClientReport("a", round_, votes), plan, sent)
        believed, news = check_answer("a", answer, plan, held), News()
        assert (believed.key, believed.symbols.tobytes()) == (round_ == 1, vote_symbols(votes, spec).tobytes())
        news.answered(plan, believed, held, total)
        held = news.heard["a"]
        sent = (sent or Table.empty(total, 1)).changed(round_, rows, believed.symbols)
        assert (held.round, held.symbols.tobytes()) == (sent.round, sent.symbols.tobytes())
        literal.append(decode_answer(answer).literal)
    assert literal == [False, False, True, False]
    # What both ends still know of the upper half leaves nothing to say: "all 0" in five bits.
    assert len(decode_answer(answer).payload) == 1


def test_who_is_lost_is_told_everything_and_nothing_of_it_is_referred_to():
    spec = "quantised:1+delta+entropy"
    links = Links.new(TOTAL, CLASSES, spec).published(3, soft([1, 2]), spec)
    links = applied(applied(links, "a", 3, [1, 2]), "b", 4, [1, 2]).after(News(lost={"a"}))
    assert missing(links, "a", [1, 2]) == (0, [1, 2])
    assert missing(links, "b", [1, 2]) == (4, [])
    assert (links.have("a"), links.have("b")) == (0, 0)


def test_a_plan_carries_its_round():
    assert plan_round(b"x" * 26 + b"\x07\0\0\0rest") == 7
