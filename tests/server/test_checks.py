"""A bad reply is that client's failure, each kind with its own reason; a good one is believed."""

import dataclasses
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.checks import Believed, Failure, check_answer
from strategies.believing import believe_symbols, vote_symbols
from strategies.codecs import link_named
from strategies.envelope import REASONS
from strategies.messages import ClientReport, Refusal, RoundPlan
from strategies.soft_labels import LOG_FLOOR, SoftLabels
from strategies.tables import Table
from strategies.wire import NO_RUN, encode_plan, encode_refusal, encode_report

ROWS = np.array([0, 5, 300])
PLAN = RoundPlan("ab" * 16, 2, "a1" * 32, "b2" * 32, 3, ROWS)
SOFT = SoftLabels.from_logits(ROWS, np.random.default_rng(0).normal(size=(3, 3)))
GOOD = encode_report(ClientReport("site-1", 2, SOFT, 0.5), PLAN)

DELTA = "quantised:1+delta+entropy"
HEARD = Table.empty(301, 1).changed(1, ROWS, np.array([[0], [1], [2]], np.uint8))
DELTA_PLAN = dataclasses.replace(PLAN, uplink=DELTA, have=1)
ALL_PLAN = dataclasses.replace(PLAN, wants=("scores", "counts"))
EXTRAS = {"scores": np.array([0.0, 0.25, 1.0]), "counts": np.array([3.0, 0.0, 7.5])}


def resealed(change, blob=GOOD):
    """The good reply with its body changed and its checksum made right again."""
    body = bytearray(blob[10:-4])
    change(body)
    message = blob[:6] + struct.pack("<I", len(body)) + bytes(body)
    return message + struct.pack("<I", zlib.crc32(message))


def field(at, data, blob=GOOD):
    """A body that holds `data` at `at`, from the end where that is negative."""

    def change(body):
        start = at if at >= 0 else len(body) + at
        body[start : start + len(data)] = data

    return resealed(change, blob)


def cell(value):
    return field(-4, struct.pack("<f", value))


def other(votes=SOFT, client="site-1", round_=2, extras=None, sent=None, **changed):
    """A reply to a plan that was another one."""
    return encode_report(
        ClientReport(client, round_, votes, **(extras or {})), dataclasses.replace(PLAN, **changed), sent
    )


def doubled(body):
    body[-36:] = (np.frombuffer(bytes(body[-36:]), "<f4") + np.float32(np.log(0.5))).tobytes()


def logits(body):
    body[-36:] = np.array([5.0, -3.0, 1.0] * 3, "<f4").tobytes()


def certain(most):
    """A row of float32 that is all but sure of its first class."""
    return np.array([most, LOG_FLOOR, LOG_FLOOR], "<f4").tobytes()


def moved(rows):
    return SoftLabels(rows, SOFT.log_probs)


# Where fields of a report's body stand: run 16, round 4, three digests 24, classes 4, name 7, then weight and flags.
WEIGHT, FLAGS = 55, 59
FEWER = other(SoftLabels(ROWS[:2], SOFT.log_probs[:2]))

# By reason: (reply, plan that it is compared with, what the client had sent before).
REPLIES = {
    "too_large": [GOOD + bytes(5000)],
    "foreign": [b"\x80\x04\x95 a pickle", b"", encode_plan(PLAN)],
    "truncated": [GOOD[:-1], GOOD[:50], GOOD + b"\0", field(-40, struct.pack("<I", 37))],
    "corrupted": [GOOD[:60] + bytes([GOOD[60] ^ 1]) + GOOD[61:]],
    "version": [GOOD[:4] + b"\x01" + GOOD[5:]],
    "malformed": [
        field(FLAGS, b"\x80"),
        (field(-1, b"\xff", other(uplink="quantised:1")), dataclasses.replace(PLAN, uplink="quantised:1")),
    ],
    "wrong_run": [
        other(run="cd" * 16),
        encode_refusal(Refusal("site-1", 2, "need_key"), "cd" * 16),
        encode_refusal(Refusal("site-1", 0, "unreadable_plan"), "cd" * 16),
        encode_refusal(Refusal("site-1", 2, "need_key"), NO_RUN),  # who needs a key has read the plan
    ],
    "wrong_round": [
        other(round_=1),
        encode_refusal(Refusal("site-1", 1, "no_policy"), PLAN.run),
        encode_refusal(Refusal("site-1", 1, "bad_teacher"), PLAN.run),
    ],
    "wrong_client": [other(client="site-2"), encode_refusal(Refusal("site-2", 2, "no_policy"), PLAN.run)],
    "proxy_hash": [other(proxy_sha256="00" * 32)],
    "class_list": [other(classes_sha256="00" * 32)],
    "rows": [
        other(moved(ROWS + 1), ask_rows=ROWS + 1),
        other(moved(np.array([0, 1, 2])), subject="classes", ask_rows=np.arange(3)),
    ],
    "shape": [
        other(SoftLabels.from_logits(ROWS, np.zeros((3, 4))), classes=4),
        field(-44, struct.pack("<I", 10**9)),  # the number of rows stands before the payload and its length
        field(-44, struct.pack("<I", 2)),
        # a bit for each of four asked rows, where three were asked
        field(60, struct.pack("<I", 4), FEWER),
        field(64, b"\x80", FEWER),
    ],
    "codec": [other(uplink="float16"), field(60, b"\1\2\3\4")],
    "base": [
        (other(uplink=DELTA, have=1, sent=HEARD), DELTA_PLAN),  # the coordinator holds nothing
        (other(uplink=DELTA, have=1, sent=HEARD), DELTA_PLAN, dataclasses.replace(HEARD, round=2)),
        (other(uplink=DELTA, have=1, sent=HEARD), DELTA_PLAN, HEARD.changed(1, ROWS[:1], np.array([[2]], np.uint8))),
        # a difference where none was offered: the plan's uplink takes none
        (resealed(lambda body: body.__setitem__(slice(64, 68), struct.pack("<I", 1) + bytes(8))), PLAN, HEARD),
    ],
    "extras": [
        other(extras=EXTRAS),
        (GOOD, ALL_PLAN),
        (other(extras={"scores": EXTRAS["scores"]}), ALL_PLAN),
        (other(extras={"counts": EXTRAS["counts"]}), ALL_PLAN),
        *((field(-4, struct.pack("<f", value), other(extras=EXTRAS)), ALL_PLAN) for value in (np.nan, np.inf, -1.0)),
        (field(-4, struct.pack("<I", 0x7FA00000), other(extras=EXTRAS)), ALL_PLAN),  # a signalling NaN
    ],
    "non_finite": [
        *(cell(value) for value in (np.nan, np.inf, -np.inf)),
        (field(-2, struct.pack("<e", -np.inf), other(uplink="top-k:2")), dataclasses.replace(PLAN, uplink="top-k:2")),
    ],
    # e^.0005 = 1.0005 is a sum that rounding would explain, and a probability that nothing does
    "not_simplex": [
        cell(0.5),
        resealed(doubled),
        resealed(logits),
        field(-12, certain(5e-4)),
        field(-12, certain(2e-6)),
    ],
    "weight": [field(WEIGHT, struct.pack("<f", value)) for value in (np.nan, -1.0, 1e9, 0.0)],
    "refused_too_many_rows": [encode_refusal(Refusal("site-1", 2, "too_many_rows"), PLAN.run)],
    "refused_need_key": [encode_refusal(Refusal("site-1", 2, "need_key"), PLAN.run)],
    # Who could not read the plan names no round.
    "refused_unreadable_plan": [encode_refusal(Refusal("site-1", 0, "unreadable_plan"), NO_RUN)],
    "refused_wrong_classes": [
        encode_refusal(Refusal("site-1", 0, "wrong_classes"), NO_RUN),
        encode_refusal(Refusal("site-1", 2, "wrong_classes"), PLAN.run),
    ],
}
CASES = [
    (reason, *((*told, None, None)[:3] if isinstance(told, tuple) else (told, None, None)))
    for reason, replies in REPLIES.items()
    for told in replies
]


def test_a_good_reply_is_believed():
    believed = check_answer("site-1", GOOD, PLAN)
    assert isinstance(believed, Believed)
    assert believed.report.weight == 0.5
    assert believed.key
    np.testing.assert_allclose(believed.report.soft_labels.log_probs, SOFT.log_probs, atol=1e-6)


@pytest.mark.parametrize("spec", ["float16", "quantised:1+entropy", "top-k:2"])
def test_what_is_believed_is_what_the_symbols_mean(spec):
    plan = dataclasses.replace(PLAN, uplink=spec)
    believed = check_answer("site-1", other(uplink=spec), plan)
    symbols = vote_symbols(SOFT, spec)
    assert believed.symbols.tobytes() == symbols.tobytes()
    meant = believe_symbols(ROWS, symbols, spec, 3)
    assert believed.report.soft_labels.log_probs.tobytes() == meant.log_probs.tobytes()


@pytest.mark.parametrize("kept", [[], [0], [1, 2], [0, 1, 2]])
def test_abstentions_scores_and_counts_are_believed(kept):
    votes = SoftLabels(ROWS[kept], SOFT.log_probs[kept])
    told = {"scores": EXTRAS["scores"][kept], "counts": EXTRAS["counts"]}
    report = check_answer("site-1", other(votes, extras=told), ALL_PLAN).report
    assert report.soft_labels.rows.tolist() == ROWS[kept].tolist()
    assert report.scores.tolist() == EXTRAS["scores"][kept].tolist()
    assert report.counts.tolist() == [3.0, 0.0, 7.5]


def test_a_difference_is_believed_against_exactly_what_was_heard():
    answer = other(uplink=DELTA, have=1, sent=HEARD)
    believed = check_answer("site-1", answer, DELTA_PLAN, HEARD)
    assert not believed.key
    assert believed.symbols.tobytes() == vote_symbols(SOFT, DELTA).tobytes()
    # The difference itself: what has to be added to 0, 1, 2 modulo 3.
    difference = link_named(DELTA).difference(vote_symbols(SOFT, DELTA), HEARD.symbols[ROWS], 3)
    assert difference.tobytes() != believed.symbols.tobytes()
    # Who has forgotten what it sent sends everything, and is believed, too.
    assert check_answer("site-1", other(uplink=DELTA, have=1), DELTA_PLAN, HEARD).key


def test_a_vote_that_is_shorter_than_its_difference_is_believed_and_nothing_is_forgotten():
    rows = np.arange(0, 300, 3)
    alike = SoftLabels.from_logits(rows, np.tile([3.0, 0.0, 0.0], (100, 1)))
    heard = Table.empty(301, 1).changed(1, rows, np.arange(100, dtype=np.uint8)[:, None] % 3)
    plan = dataclasses.replace(DELTA_PLAN, ask_rows=rows)
    believed = check_answer("site-1", other(alike, ask_rows=rows, uplink=DELTA, have=1, sent=heard), plan, heard)
    assert (believed.key, believed.symbols.any()) == (False, False)
    # It names what it could have been a difference to, and that must be what was heard all the same.
    wrong = heard.changed(1, rows[:1], np.array([[2]], np.uint8))
    assert (
        check_answer("site-1", other(alike, ask_rows=rows, uplink=DELTA, have=1, sent=heard), plan, wrong).reason
        == "base"
    )


def test_rounding_above_0_is_believed():
    assert isinstance(check_answer("site-1", field(-12, certain(1e-7)), PLAN), Believed)


def test_every_reason_has_a_reply_here():
    assert set(REASONS) <= set(REPLIES)


@pytest.mark.parametrize(("reason", "blob", "plan", "heard"), CASES)
def test_each_bad_reply_fails_with_its_own_reason(reason, blob, plan, heard):
    answer = check_answer("site-1", blob, plan or PLAN, heard)
    assert isinstance(answer, Failure)
    assert (answer.client, answer.reason) == ("site-1", reason)
    assert answer.answered
    assert "site-2" not in answer.detail


@pytest.mark.parametrize("reason", ["no_reply", "late", "crashed", "transport"])
def test_silence_is_no_answer(reason):
    assert not Failure("a", reason).answered


@given(st.binary(max_size=400))
@settings(max_examples=200)
def test_no_bytes_raise(blob):
    assert isinstance(check_answer("site-1", blob, PLAN), Failure)


@given(st.data())
@settings(max_examples=300)
def test_no_change_of_a_sealed_body_raises(data):
    blob, plan = data.draw(
        st.sampled_from(
            [
                (GOOD, PLAN),
                (other(uplink=DELTA, have=1, sent=HEARD), DELTA_PLAN),
                (other(SoftLabels(ROWS[1:], SOFT.log_probs[1:]), extras={**EXTRAS, "scores": np.ones(2)}), ALL_PLAN),
            ]
        )
    )

    def change(body):
        for _ in range(data.draw(st.integers(1, 4))):
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))

    assert isinstance(check_answer("site-1", resealed(change, blob), plan, HEARD), Believed | Failure)


def test_a_huge_reply_takes_no_memory():
    huge = bytes(50_000_000)
    tracemalloc.start()
    check_answer("site-1", huge, PLAN)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("spec", ["float32", "quantised:8+entropy", "top-k:2"])
def test_the_largest_honest_reply_is_not_too_large(spec):
    rng = np.random.default_rng(1)
    rows = np.arange(0, 4000, 2)
    votes = SoftLabels.from_logits(rows[:-1], rng.normal(size=(1999, 3)) * 5)  # one abstention: the bits travel, too
    plan = dataclasses.replace(ALL_PLAN, uplink=spec, ask_rows=rows)
    report = ClientReport("ü" * 127, 2, votes, scores=rng.uniform(size=1999), counts=np.ones(3))
    assert isinstance(check_answer("ü" * 127, encode_report(report, plan), plan), Believed)
