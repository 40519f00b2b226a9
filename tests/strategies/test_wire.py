"""Messages survive the wire; everything else is refused with its own reason."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from strategies.believing import believe_symbols, decode_symbols, vote_symbols
from strategies.codecs import link_named
from strategies.envelope import REASONS, Reader, WireError, name_field
from strategies.messages import (
    REFUSALS,
    ClientReport,
    Draw,
    Refusal,
    Sync,
)
from strategies.selection import drawn
from strategies.soft_labels import LOG_FLOOR, SoftLabels, floored
from strategies.tables import Table
from strategies.wire import (
    RawReport,
    answer_run,
    decode_answer,
    decode_plan,
    encode_plan,
    encode_refusal,
    encode_report,
    plan_round,
)
from tests.strategies.wire_messages import ROWS, RUN, decoded, plan, put, sealed, soft, sync_plan

SPECS = ("float32", "float16", "float16+entropy", "quantised:1+delta+entropy", "quantised:4", "top-k:2+entropy")


ROW_SETS = st.lists(st.integers(0, 2**20 - 1), max_size=20, unique=True).map(sorted)


@given(
    rows=ROW_SETS,
    teacher_rows=ROW_SETS,
    teachers=st.integers(0, 3),
    links=st.tuples(st.sampled_from(SPECS), st.sampled_from(SPECS)),
    have=st.integers(0, 6),
    wants=st.sampled_from([(), ("scores",), ("counts",), ("scores", "counts")]),
)
@settings(max_examples=100)
def test_a_plan_comes_back_as_it_was(rows, teacher_rows, teachers, links, have, wants):
    uplink, downlink = links
    taught = tuple(soft(teacher_rows, seed=seed) for seed in range(teachers))
    sent = plan(rows, taught, uplink=uplink, downlink=downlink, have=have, wants=wants, round=7)
    got = decoded(encode_plan(sent))
    for field in ("run", "round", "proxy_sha256", "classes_sha256", "classes", "uplink", "downlink", "have", "wants"):
        assert getattr(got, field) == getattr(sent, field)
    assert got.ask_rows.tolist() == list(rows)
    assert len(got.teachers) == teachers
    assert got.sync is None
    for one, other in zip(got.teachers, taught, strict=True):
        # A teacher that travels is what its symbols mean, bit for bit.
        meant = believe_symbols(other.rows, vote_symbols(other, downlink), downlink, 3)
        assert one.rows.tolist() == teacher_rows
        assert one.log_probs.tobytes() == meant.log_probs.tobytes()


@given(
    held=st.lists(st.integers(0, 99), min_size=1, max_size=30, unique=True).map(sorted),
    data=st.data(),
    spec=st.sampled_from(SPECS),
)
@settings(max_examples=60)
def test_a_difference_comes_back_as_it_was(held, data, spec):
    changed = sorted(data.draw(st.lists(st.sampled_from(held), unique=True)))
    symbols = vote_symbols(soft(held), spec)
    news = symbols[np.isin(held, changed)]
    sync = Sync(data.draw(st.integers(0, 8)), np.array(held), b"8 bytes!", np.array(changed, np.int64), news)
    got = decoded(encode_plan(plan(sync=sync, downlink=spec, round=9))).sync
    assert (got.base, got.digest) == (sync.base, b"8 bytes!")
    assert got.rows.tolist() == held
    assert got.changed.tolist() == changed
    assert got.symbols.tobytes() == news.tobytes()


def test_rows_that_are_a_draw_travel_as_one():
    ask, last = Draw(7, 1000, 0, 200), Draw(8, 1000, 0, 200)
    rows, taught = drawn(ask), drawn(last)[::2]
    told = plan(rows, (soft(taught),), ask_draw=ask, teacher_draw=last, downlink="quantised:1")
    got = decoded(encode_plan(told))
    assert got.ask_rows.tolist() == rows.tolist()
    assert got.teachers[0].rows.tolist() == taught.tolist()
    assert (got.ask_draw, got.teacher_draw) == (ask, last)
    # 21 bytes for the draw, 21 + 200/8 for the half of another one; as gaps they take 10 + 199 and 10 + 99.
    plain = plan(rows, (soft(taught),), downlink="quantised:1")
    assert len(encode_plan(plain)) - len(encode_plan(told)) == (209 - 21) + (109 - 46)


def test_changed_rows_that_are_a_draw_travel_as_one():
    draw, spec = Draw(8, 1000, 0, 200), "quantised:1+delta+entropy"
    rows = drawn(draw)
    symbols, sizes = vote_symbols(soft(rows), spec), {}
    for name, changed in (("all", rows), ("half", rows[::2]), ("none", rows[:0])):
        sync = Sync(0, rows, b"8 bytes!", changed, symbols[np.isin(rows, changed)])
        told = plan(sync=sync, downlink=spec, teacher_draw=draw)
        got = decoded(encode_plan(told))
        assert (got.sync.changed.tolist(), got.teacher_draw) == (changed.tolist(), draw)
        sizes[name] = len(encode_plan(told)) - len(link_named(spec).encode(sync.symbols, 3))
    # 21 bytes for the draw; 25 more for which half of it; 10 for no gaps at all.
    assert (sizes["half"] - sizes["all"], sizes["all"] - sizes["none"]) == (25, 11)


def test_class_tables_name_classes_and_no_proxy_rows():
    sent = plan([0, 1, 2], (soft([0, 2]),), subject="classes")
    got = decode_plan(encode_plan(sent), 1, 3)  # one proxy row, three classes
    assert (got.subject, got.ask_rows.tolist(), got.teachers[0].rows.tolist()) == ("classes", [0, 1, 2], [0, 2])
    with pytest.raises(WireError, match="rows"):
        decode_plan(encode_plan(plan([0, 1, 3], subject="classes")), 1000, 3)


@pytest.mark.parametrize("round_", [1, 300, 2**32 - 1])
def test_who_carries_a_plan_can_read_its_round(round_):
    assert plan_round(encode_plan(plan(round=round_))) == round_


@pytest.mark.parametrize("spec", SPECS)
def test_a_report_comes_back_as_it_was(spec):
    sent = ClientReport("Clínica-7", 2, soft(ROWS), weight=0.25)
    got = decode_answer(encode_report(sent, plan(uplink=spec)))
    assert isinstance(got, RawReport)
    assert (got.client, got.round, got.weight, got.run) == ("Clínica-7", 2, 0.25, RUN)
    assert (got.voted, got.scores, got.counts, got.base) == (None, None, None, 0)
    symbols = decode_symbols(spec, got.payload, 3, 3)
    assert symbols.tobytes() == vote_symbols(sent.soft_labels, spec).tobytes()


def test_scores_keep_their_ratios_down_to_a_billionth_and_zero_stays_zero():
    scores = np.array([1.0, 0.5, 2.0**-31, 1e-12, 0.0])
    sent = ClientReport("a", 2, soft(np.arange(5)), scores=scores)
    # 1e-12 is below 2^-31.75, the last step
    assert decode_answer(encode_report(sent, plan(tuple(range(5))))).scores.tolist() == [1.0, 0.5, 2.0**-31, 0.0, 0.0]


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.booleans(), st.booleans())
def test_abstentions_scores_and_counts_come_back_as_they_were(voted, with_scores, with_counts):
    asked = np.arange(len(voted)) * 3
    rows = asked[np.array(voted)]
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=len(rows)) if with_scores else None
    counts = np.array([0.0, 12.0, 3.5]) if with_counts else None
    got = decode_answer(encode_report(ClientReport("a", 2, soft(rows), scores=scores, counts=counts), plan(asked)))
    assert got.rows == len(rows)
    assert (asked if got.voted is None else asked[got.voted]).tolist() == rows.tolist()
    assert (got.voted is None) == all(voted)
    if with_scores:
        # Eight steps a halving: a factor of 2^(1/16) either way is the most that is lost.
        lost = np.abs(np.log2(got.scores) - np.log2(scores))
        assert lost.max(initial=0.0) <= 1 / 16 + 1e-9
    assert (got.scores is None) == (not with_scores)
    assert (None if got.counts is None else got.counts.tolist()) == ([0.0, 12.0, 3.5] if with_counts else None)


@given(st.lists(st.booleans(), min_size=3, max_size=3), st.integers(0, 6))
def test_a_difference_and_what_it_refers_to_give_the_vote(voted, have):
    spec, before, now = "quantised:1+delta+entropy", soft(ROWS, seed=1), soft(ROWS[np.array(voted)], seed=2)
    sent = Table.empty(1000, 1).changed(5, ROWS, vote_symbols(before, spec))
    got = decode_answer(encode_report(ClientReport("a", 7, now), plan(uplink=spec, have=have, round=7), sent))
    symbols = decode_symbols(spec, got.payload, len(now.rows), 3)
    assert got.base == (5 if have == 5 else 0)  # a difference only to what the coordinator says that it has
    if got.base:
        assert got.base_digest == sent.digest(now.rows)
    if got.base and not got.literal:
        symbols = link_named(spec).apply(symbols, sent.symbols[now.rows], 3)
    assert symbols.tobytes() == vote_symbols(now, spec).tobytes()


@pytest.mark.parametrize("spec", ["quantised:1+delta+entropy", "quantised:3+delta+entropy", "float16+delta+entropy"])
@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])  # share of the rows that vote as before
@pytest.mark.parametrize("sure", [0.0, 0.9, 1.0])  # share of the rows that all vote for class 0
def test_the_shorter_of_the_vote_and_the_difference_travels(spec, alike, sure):
    rng, rows = np.random.default_rng(3), np.arange(200)
    logits = rng.normal(size=(200, 3))
    logits[: int(200 * sure)] = [3.0, 0.0, 0.0]
    before = np.where(rng.random((200, 1)) < alike, logits, rng.normal(size=(200, 3)))
    now, then = (vote_symbols(SoftLabels.from_logits(rows, some), spec) for some in (logits, before))
    sent, told = Table.empty(200, now.shape[1]).changed(1, rows, then), plan(rows, uplink=spec, have=1)
    got = decode_answer(encode_report(ClientReport("a", 2, SoftLabels.from_logits(rows, logits)), told, sent))
    link = link_named(spec)
    whole, changes = link.encode(now, 3), link.encode_difference(now, then, 3)
    assert got.payload == (changes if len(changes) <= len(whole) else whole)
    assert (got.base, got.base_digest, got.literal) == (1, sent.digest(rows), len(changes) > len(whole))
    symbols = decode_symbols(spec, got.payload, 200, 3)
    assert (symbols if got.literal else link.apply(symbols, then, 3)).tobytes() == now.tobytes()


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_comes_back_as_it_was(code):
    blob = encode_refusal(Refusal("site", 4, code), RUN)
    assert (decode_answer(blob), answer_run(blob)) == (Refusal("site", 4, code), RUN)


def test_the_run_of_a_report_is_where_that_of_a_refusal_is():
    assert answer_run(encode_report(VOTES, plan())) == decode_answer(encode_report(VOTES, plan())).run == RUN


@given(st.text(max_size=300))
@example("a\tb")
@example("\ud800")
def test_a_name_that_cannot_be_read_back_is_not_written(text):
    if text.isprintable() and 1 <= len(text.encode()) <= 255:
        assert Reader(name_field(text)).name() == text
    else:
        with pytest.raises(ValueError, match="must be printable and have 1 to 255 bytes of UTF-8"):
            name_field(text)


@given(classes=st.integers(2, 300), scale=st.sampled_from([0.1, 1.0, 50.0]), seed=st.integers(0, 10**6))
def test_float32_is_exact_and_a_second_trip_changes_nothing_above_the_floor(classes, scale, seed):
    def trip(labels):
        return believe_symbols(labels.rows, vote_symbols(labels, "float32"), "float32", classes)

    first = SoftLabels.from_logits(ROWS, np.random.default_rng(seed).normal(scale=scale, size=(3, classes)))
    came = trip(first)
    above = (first.log_probs >= LOG_FLOOR).sum(axis=1)
    exact = classes - above <= 5
    assert came.log_probs[exact].tobytes() == floored(first.log_probs)[exact].tobytes()
    # Each floored class lifts the sum by 1e-7; the row is shifted by the log of that sum.
    np.testing.assert_allclose(came.log_probs, floored(first.log_probs), rtol=0, atol=classes * 1e-7 + 2e-6)
    assert trip(came).log_probs.tobytes() == floored(came.log_probs).tobytes()


def test_bytes_are_the_stated_layout():
    # envelope 10 + 4; run 16, round 4, three digests 24, classes 4, name 1 + 6, weight 4, flags 1, codec 4, base 4,
    # rows 4, payload's length 4: 76
    report = ClientReport("site-1", 2, soft(ROWS))
    assert len(encode_report(report, plan())) == 14 + 76 + 3 * 3 * 4
    # abstentions: 4 and one byte of bits, and a row less; scores 2, counts 3 * 4
    fewer = ClientReport("site-1", 2, soft(ROWS[:2]), scores=np.ones(2), counts=np.ones(3))
    assert len(encode_report(fewer, plan())) == 14 + 76 + 5 + 2 * 3 * 4 + 2 + 12


def test_gaps_take_the_narrowest_type():
    narrow = len(encode_plan(plan(range(0, 1000, 10))))
    wide = len(encode_plan(plan((*range(0, 990, 10), 100_000))))
    assert wide - narrow == 99 * 4 - 99 * 1


PLANS = [
    encode_plan(plan(teachers=(soft([1, 2]),))),
    encode_plan(plan(teachers=(soft([1, 2]), soft([1, 2], seed=1)), downlink="quantised:2+entropy")),
    encode_plan(plan(drawn(Draw(1, 400, 0, 60)), ask_draw=Draw(1, 400, 0, 60))),
    encode_plan(plan(drawn(Draw(1, 400, 0, 300))[::2], ask_draw=Draw(1, 400, 0, 300))),
    encode_plan(sync_plan()),
    encode_plan(sync_plan("float16+entropy", wants=("scores", "counts"))),
]
VOTES = ClientReport("site-1", 2, soft(ROWS))
REPORTS = [
    encode_report(VOTES, plan()),
    encode_report(VOTES, plan(uplink="top-k:2+entropy")),
    encode_report(ClientReport("site-1", 2, soft(ROWS[1:]), scores=np.ones(2), counts=np.ones(3)), plan()),
    encode_report(VOTES, plan(uplink="quantised:1+delta+entropy", have=1), Table.empty(301, 1).changed(1, ROWS, 0)),
    encode_refusal(Refusal("site-1", 2, "diverged"), RUN),
]
MESSAGES = [(decoded, blob) for blob in PLANS] + [(decode_answer, blob) for blob in REPORTS]


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_any_bytes_are_a_wire_error_and_nothing_else(blob):
    for decode in (decoded, decode_answer):
        with pytest.raises(WireError):
            decode(blob)


@pytest.mark.parametrize(("decode", "blob"), MESSAGES)
def test_every_truncation_and_every_flipped_bit_is_refused(decode, blob):
    for cut in range(len(blob)):
        with pytest.raises(WireError):
            decode(blob[:cut])
    for position in range(len(blob)):
        for bit in (0x01, 0x80):
            broken = bytearray(blob)
            broken[position] ^= bit
            with pytest.raises(WireError):
                decode(bytes(broken))


@given(st.data())
@settings(max_examples=600)
def test_a_liar_with_a_right_checksum_never_gets_past_a_wire_error(data):
    decode, blob = data.draw(st.sampled_from(MESSAGES))

    def change(body):
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(body) - 1))
            match data.draw(st.sampled_from(["set", "insert", "delete"])):
                case "set":
                    body[at] = data.draw(st.integers(0, 255))
                case "insert":
                    body[at:at] = data.draw(st.binary(min_size=1, max_size=4))
                case _:
                    del body[at : at + 1]
            if not body:
                return

    try:
        decode(sealed(blob, change))
    except WireError as error:
        assert error.reason in REASONS  # noqa: PT017 - the other outcome is legal, too


@given(st.data())
@settings(max_examples=300)
def test_what_is_decoded_is_what_was_encoded(data):
    """No second form of one plan: two different messages are never the same plan."""
    blob = data.draw(st.sampled_from(PLANS))
    at, value = data.draw(st.integers(0, len(blob) - 15)), data.draw(st.integers(0, 255))
    other = sealed(blob, put(at, bytes([value])))
    with suppress(WireError):
        got = decoded(other)
        if got.downlink.startswith("quantised"):  # symbols of other codecs are not all what a vote rounds to
            assert encode_plan(got) == other
