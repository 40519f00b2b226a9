"""What the coordinator knows that each client holds, against a journal of every message."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from server.checks import check_answer
from server.links import Links, News
from strategies.believing import vote_symbols
from strategies.messages import ClientReport, RoundPlan
from strategies.soft_labels import SoftLabels
from strategies.tables import Table
from strategies.wire import decode_answer, encode_report

TOTAL, CLASSES = 14, 4


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
