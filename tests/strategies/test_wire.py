"""Messages survive the wire; everything else is refused with its own reason."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.messages import REFUSALS, ClientReport, Refusal, RoundPlan
from strategies.soft_labels import SoftLabels
from strategies.wire import (
    REASONS,
    RawReport,
    WireError,
    believe,
    decode_answer,
    decode_plan,
    encode_plan,
    encode_refusal,
    encode_report,
)

RUN, PROXY, CLASSES = "0123456789abcdef" * 2, "a1" * 32, "b2" * 32


def soft(rows, classes=3, seed=0):
    return SoftLabels.from_logits(rows, np.random.default_rng(seed).normal(size=(len(rows), classes)))


def plan(rows=(0, 5, 300), teacher=None, codec="float32", round_=2):
    return RoundPlan(RUN, round_, PROXY, CLASSES, 3, codec, np.array(rows, np.int64), teacher)


def sealed(blob, change):
    """`blob` with its body changed and length and checksum made right again: a liar, not a broken line."""
    body = change(bytearray(blob[10:-4]))
    message = blob[:6] + struct.pack("<I", len(body)) + bytes(body)
    return message + struct.pack("<I", zlib.crc32(message))


ROWS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20, unique=True).map(sorted)


@given(rows=ROWS, teacher_rows=ROWS, codec=st.sampled_from(["float32", "float16"]), with_teacher=st.booleans())
@settings(max_examples=60)
def test_a_plan_comes_back_as_it_was(rows, teacher_rows, codec, with_teacher):
    teacher = soft(np.array(teacher_rows, np.int64)) if with_teacher else None
    sent = plan(rows, teacher, codec)
    got = decode_plan(encode_plan(sent))
    assert (got.run, got.round, got.codec, got.classes) == (RUN, 2, codec, 3)
    assert (got.proxy_sha256, got.classes_sha256) == (PROXY, CLASSES)
    assert got.ask_rows.tolist() == list(rows)
    if teacher is None:
        assert got.teacher is None
    else:
        assert got.teacher.rows.tolist() == teacher_rows
        np.testing.assert_allclose(got.teacher.log_probs, teacher.log_probs, atol=0.01 if codec == "float16" else 1e-6)


@pytest.mark.parametrize("codec", ["float32", "float16"])
def test_a_report_comes_back_as_it_was(codec):
    sent = ClientReport("Clínica-7", 2, soft(np.array([0, 5, 300])), weight=0.25)
    got = decode_answer(encode_report(sent, plan(codec=codec)))
    assert isinstance(got, RawReport)
    assert (got.client, got.round, got.weight, got.run) == ("Clínica-7", 2, 0.25, RUN)
    votes = believe(np.array([0, 5, 300]), got.votes)
    np.testing.assert_allclose(votes.log_probs, sent.soft_labels.log_probs, atol=0.01)


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_comes_back_as_it_was(code):
    assert decode_answer(encode_refusal(Refusal("site", 4, code), RUN)) == Refusal("site", 4, code)


def test_bytes_are_the_stated_layout():
    # envelope 10 + 4; run 16, round 4, three digests 96, classes 4, name 1 + 6, weight 4, codec 1 + 7, rows 4: 143
    report = ClientReport("site-1", 2, soft(np.array([0, 5, 300])))
    assert len(encode_report(report, plan())) == 14 + 143 + 3 * 3 * 4


def test_gaps_take_the_narrowest_type():
    narrow = len(encode_plan(plan(tuple(range(0, 1000, 10)))))
    wide = len(encode_plan(plan((*range(0, 990, 10), 100_000))))
    assert wide - narrow == 99 * 4 - 99 * 1


PLAN_BYTES = encode_plan(plan(teacher=soft(np.array([1, 2]))))
REPORT_BYTES = encode_report(ClientReport("site-1", 2, soft(np.array([0, 5, 300]))), plan())


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_any_bytes_are_a_wire_error_and_nothing_else(blob):
    for decode in (decode_plan, decode_answer):
        with pytest.raises(WireError):
            decode(blob)


@pytest.mark.parametrize(("decode", "blob"), [(decode_plan, PLAN_BYTES), (decode_answer, REPORT_BYTES)])
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


@given(st.integers(0, len(REPORT_BYTES) - 15), st.integers(0, 255))
@settings(max_examples=300)
def test_a_liar_with_a_right_checksum_never_gets_past_a_wire_error(position, value):
    def change(body):
        body[position] = value
        return body

    for decode, blob in ((decode_answer, REPORT_BYTES), (decode_plan, PLAN_BYTES)):
        if position < len(blob) - 14:
            try:
                decode(sealed(blob, change))
            except WireError as error:
                assert error.reason in REASONS  # noqa: PT017 - the other outcome is legal, too


def reason_of(decode, blob):
    with pytest.raises(WireError) as caught:
        decode(blob)
    return caught.value.reason


def test_each_defect_has_its_own_reason():
    assert reason_of(decode_answer, b"PK\x03\x04 a zip file") == "foreign"
    assert reason_of(decode_answer, b"") == "foreign"
    assert reason_of(decode_answer, PLAN_BYTES) == "foreign"
    assert reason_of(decode_answer, REPORT_BYTES[:-1]) == "truncated"
    assert reason_of(decode_answer, REPORT_BYTES + b"!") == "truncated"
    assert reason_of(decode_answer, REPORT_BYTES[:-1] + bytes([REPORT_BYTES[-1] ^ 1])) == "corrupted"
    assert reason_of(decode_answer, REPORT_BYTES[:4] + b"\x09" + REPORT_BYTES[5:]) == "version"


def test_a_declared_size_of_a_billion_rows_takes_no_memory():
    # The row count stands before the payload: 4 bytes, then 3 rows x 3 classes x 4 bytes.
    def lie(body):
        body[-40:-36] = struct.pack("<I", 10**9)
        return body

    assert reason_of(decode_answer, sealed(REPORT_BYTES, lie)) == "shape"

    def lie_in_plan(body):
        at = 16 + 4 + 32 + 32 + 4 + 8
        body[at : at + 4] = struct.pack("<I", 10**9)
        return body

    assert reason_of(decode_plan, sealed(PLAN_BYTES, lie_in_plan)) == "truncated"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.nan, "non_finite"),
        (np.inf, "non_finite"),
        (-np.inf, "non_finite"),
        (3.0, "not_simplex"),
        (-9.0, "not_simplex"),
    ],
)
def test_a_teacher_that_is_no_distribution_is_refused(value, reason):
    def poison(body):
        body[-4:] = struct.pack("<f", value)
        return body

    assert reason_of(decode_plan, sealed(PLAN_BYTES, poison)) == reason


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("round", 0),
        ("round", 2**32),
        ("classes", 1),
        ("run", "xyz"),
        ("proxy_sha256", "A1" * 32),
        ("classes_sha256", ""),
    ],
)
def test_a_plan_out_of_bounds_is_never_made(field, value):
    told = {
        "run": RUN,
        "round": 1,
        "proxy_sha256": PROXY,
        "classes_sha256": CLASSES,
        "classes": 3,
        "codec": "float32",
        "ask_rows": np.array([1]),
        "teacher": None,
    }
    with pytest.raises(ValueError, match=field):
        RoundPlan(**{**told, field: value})


@pytest.mark.parametrize("weight", [0.0, 0.0009, 1.1, -1.0, float("nan")])
def test_weights_out_of_bounds_are_never_made(weight):
    with pytest.raises(ValueError, match="weight"):
        ClientReport("site", 1, soft(np.array([1])), weight)


def test_an_unknown_refusal_is_never_made():
    with pytest.raises(ValueError, match="unknown refusal"):
        Refusal("site", 1, "patient 4711 was missing")


@pytest.mark.parametrize("rows", [(3, 2), (2, 2), (-1, 2), (1, 2**32)])
def test_rows_that_cannot_be_coded_are_refused(rows):
    with pytest.raises(ValueError, match="strictly increasing"):
        encode_plan(plan(rows))


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_names_that_cannot_be_coded_are_refused(name):
    with pytest.raises(ValueError, match="1 to 255 bytes"):
        encode_report(ClientReport(name, 2, soft(np.array([0, 5, 300]))), plan())
