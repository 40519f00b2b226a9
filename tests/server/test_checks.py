"""A bad reply is that client's failure, each kind with its own reason; a good one is believed."""

import dataclasses
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.checks import Failure, check_answer
from strategies.messages import ClientReport, Refusal, RoundPlan
from strategies.soft_labels import SoftLabels
from strategies.wire import encode_plan, encode_refusal, encode_report

ROWS = np.array([0, 5, 300])
PLAN = RoundPlan("ab" * 16, 2, "a1" * 32, "b2" * 32, 3, "float32", ROWS, None)
SOFT = SoftLabels.from_logits(ROWS, np.random.default_rng(0).normal(size=(3, 3)))
GOOD = encode_report(ClientReport("site-1", 2, SOFT, 0.5), PLAN)


def resealed(change):
    """The good reply with its body changed and its checksum made right again."""
    body = bytearray(GOOD[10:-4])
    change(body)
    message = GOOD[:6] + struct.pack("<I", len(body)) + bytes(body)
    return message + struct.pack("<I", zlib.crc32(message))


def cell(value):
    def change(body):
        body[-4:] = struct.pack("<f", value)

    return resealed(change)


def field(at, data):
    def change(body):
        body[at : at + len(data)] = data

    return resealed(change)


def other(**changed):
    return encode_report(ClientReport("site-1", 2, SOFT), dataclasses.replace(PLAN, **changed))


def doubled(body):
    body[-36:] = (np.frombuffer(bytes(body[-36:]), "<f4") + np.float32(np.log(0.5))).tobytes()


def logits(body):
    body[-36:] = np.array([5.0, -3.0, 1.0] * 3, "<f4").tobytes()


REPLIES = {
    "non_finite": [cell(np.nan), cell(np.inf), cell(-np.inf)],
    "not_simplex": [cell(0.5), resealed(doubled), resealed(logits)],
    "proxy_hash": [other(proxy_sha256="00" * 32)],
    "class_list": [other(classes_sha256="00" * 32)],
    "wrong_run": [other(run="cd" * 16)],
    "wrong_round": [
        encode_report(ClientReport("site-1", 1, SOFT), PLAN),
        encode_refusal(Refusal("site-1", 1, "no_policy"), PLAN.run),
    ],
    "wrong_client": [
        encode_report(ClientReport("site-2", 2, SOFT), PLAN),
        encode_refusal(Refusal("site-2", 2, "no_policy"), PLAN.run),
    ],
    "rows": [encode_report(ClientReport("site-1", 2, SoftLabels(ROWS + 1, SOFT.log_probs)), PLAN)],
    "shape": [
        encode_report(ClientReport("site-1", 2, SoftLabels(ROWS[:2], SOFT.log_probs[:2])), PLAN),
        encode_report(
            ClientReport("site-1", 2, SoftLabels.from_logits(ROWS, np.zeros((3, 4)))),
            dataclasses.replace(PLAN, classes=4),
        ),
        # The number of rows stands 40 bytes before the end, behind nothing but the payload.
        resealed(lambda body: body.__setitem__(slice(-40, -36), struct.pack("<I", 10**9))),
    ],
    "codec": [other(codec="float16"), field(16 + 4 + 96 + 4 + 7 + 4 + 1, b"pickle!")],
    "weight": [field(16 + 4 + 96 + 4 + 7, struct.pack("<f", value)) for value in (np.nan, -1.0, 1e9, 0.0)],
    "truncated": [GOOD[:-1], GOOD[:50], GOOD + b"\0"],
    "corrupted": [GOOD[:60] + bytes([GOOD[60] ^ 1]) + GOOD[61:]],
    "foreign": [b"\x80\x04\x95 a pickle", b"", encode_plan(PLAN)],
    "version": [GOOD[:4] + b"\x02" + GOOD[5:]],
    "too_large": [GOOD + bytes(5000)],
    "refused_too_many_rows": [encode_refusal(Refusal("site-1", 2, "too_many_rows"), PLAN.run)],
}


def test_a_good_reply_is_believed():
    report = check_answer("site-1", GOOD, PLAN)
    assert isinstance(report, ClientReport)
    assert report.weight == 0.5
    np.testing.assert_allclose(report.soft_labels.log_probs, SOFT.log_probs, atol=1e-6)


@pytest.mark.parametrize(("reason", "blob"), [(reason, blob) for reason, blobs in REPLIES.items() for blob in blobs])
def test_each_bad_reply_fails_with_its_own_reason(reason, blob):
    answer = check_answer("site-1", blob, PLAN)
    assert isinstance(answer, Failure)
    assert (answer.client, answer.reason) == ("site-1", reason)
    assert answer.answered
    assert "site-2" not in answer.detail


@given(st.binary(max_size=400))
@settings(max_examples=200)
def test_no_bytes_raise(blob):
    assert isinstance(check_answer("site-1", blob, PLAN), Failure)


@given(st.data())
@settings(max_examples=200)
def test_no_change_of_a_sealed_body_raises(data):
    def change(body):
        for _ in range(data.draw(st.integers(1, 4))):
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))

    check_answer("site-1", resealed(change), PLAN)


def test_a_huge_reply_takes_no_memory():
    huge = bytes(50_000_000)
    tracemalloc.start()
    check_answer("site-1", huge, PLAN)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
