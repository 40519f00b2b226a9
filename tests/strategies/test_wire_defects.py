"""Each defect of a message is refused with its own reason, and no declared size takes memory."""

import struct
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest

from strategies.believing import vote_symbols
from strategies.codecs import link_named
from strategies.envelope import WireError
from strategies.messages import MOST_TEACHERS, ClientReport, Draw, Refusal
from strategies.selection import drawn
from strategies.soft_labels import SoftLabels
from strategies.wire import decode_answer, decode_plan, encode_plan, encode_refusal, encode_report
from tests.strategies.wire_messages import ROWS, RUN, decoded, plan, put, sealed, soft, sync_plan

WHOLE = encode_plan(plan(teachers=(soft([1, 2]),)))
DRAWN = encode_plan(plan(drawn(Draw(1, 400, 0, 60)), ask_draw=Draw(1, 400, 0, 60)))
DIFFERENCE = encode_plan(sync_plan())
REPORT = encode_report(ClientReport("site-1", 2, soft(ROWS)), plan())
SHY = encode_report(ClientReport("site-1", 2, soft(ROWS[1:]), scores=np.ones(2), counts=np.ones(3)), plan())


def reason_of(decode, blob):
    with pytest.raises(WireError) as caught:
        decode(blob)
    return caught.value.reason


def test_each_defect_of_an_envelope_has_its_own_reason():
    report = REPORT
    assert reason_of(decode_answer, b"PK\x03\x04 a zip file") == "foreign"
    assert reason_of(decode_answer, b"") == "foreign"
    assert reason_of(decode_answer, WHOLE) == "foreign"
    assert reason_of(decoded, report) == "foreign"
    assert reason_of(decode_answer, report[:-1]) == "truncated"
    assert reason_of(decode_answer, report + b"!") == "truncated"
    assert reason_of(decode_answer, report[:-1] + bytes([report[-1] ^ 1])) == "corrupted"
    assert reason_of(decode_answer, report[:4] + b"\x09" + report[5:]) == "version"


# Where fields of a plan's body stand: run 16, round 4, proxy 32, classes 32, classes 4, subject 1, wants 1, names.
ROUND, COUNT, SUBJECT, WANTS_AT, UPLINK = 16, 84, 88, 89, 91
HAVE = 90 + 8 + 8
ASKED = HAVE + 4


@pytest.mark.parametrize(
    ("blob", "change", "reason"),
    [
        (WHOLE, put(ROUND, b"\0\0\0\0"), "malformed"),
        (WHOLE, put(COUNT, struct.pack("<I", 1)), "malformed"),
        (WHOLE, put(COUNT, struct.pack("<I", 2**32 - 1)), "class_list"),
        (WHOLE, put(SUBJECT, b"\x02"), "malformed"),
        (WHOLE, put(WANTS_AT, b"\x04"), "malformed"),
        (WHOLE, put(UPLINK, b"pickle!"), "codec"),
        (WHOLE, put(UPLINK, b"top-k:3"), "codec"),  # three classes: nothing would be left over
        (WHOLE, put(UPLINK, b"\xff\xff\xff\xff\xff\xff\xff"), "malformed"),
        (WHOLE, put(UPLINK, b"\n\n\n\n\n\n\n"), "malformed"),
        (WHOLE, put(HAVE, struct.pack("<I", 2)), "malformed"),  # round 2 cannot refer to round 2
        (WHOLE, put(ASKED, b"\x03"), "rows"),
        (WHOLE, put(ASKED + 1, struct.pack("<I", 10**9)), "rows"),
        (WHOLE, put(ASKED + 1, struct.pack("<I", 2**20)), "truncated"),
        (WHOLE, put(ASKED + 5, b"\x03"), "rows"),
        (WHOLE, put(-4, struct.pack("<f", np.nan)), "non_finite"),
        (WHOLE, put(-4, struct.pack("<f", np.inf)), "non_finite"),
        (WHOLE, put(-4, struct.pack("<f", -np.inf)), "non_finite"),
        (WHOLE, put(-4, struct.pack("<f", 3.0)), "not_simplex"),
        (WHOLE, put(-4, struct.pack("<f", -9.0)), "not_simplex"),
        (WHOLE, lambda body: body.append(0), "truncated"),
        (WHOLE, put(-28, struct.pack("<I", 2**32 - 1)), "truncated"),  # the length of the payload
        (WHOLE, put(-29, b"\0"), "malformed"),  # no teacher in a plan that has teachers
        (WHOLE, put(-29, bytes([MOST_TEACHERS + 1])), "malformed"),
        (encode_plan(plan()), put(-1, b"\x03"), "malformed"),
        (encode_plan(plan()), put(-1, b"\x01"), "truncated"),
        (DIFFERENCE, put(HAVE + 18 + 4 + 14 + 1, struct.pack("<I", 2)), "malformed"),  # a difference to its own round
    ],
)
def test_each_defect_of_a_plan_has_its_own_reason(blob, change, reason):
    assert reason_of(decoded, sealed(blob, change)) == reason


def test_a_plan_for_another_number_of_classes_is_refused_only_where_that_number_is_known():
    told = encode_plan(plan())
    assert decode_plan(told, 1000).classes == 3
    assert reason_of(lambda blob: decode_plan(blob, 1000, 4), told) == "class_list"


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (44, struct.pack("<I", 1), "shape"),  # classes
        (48, b"\0site-1", "malformed"),  # an empty name
        (59, b"\x10", "malformed"),  # an unknown flag
        (59, b"\x08", "malformed"),  # no difference, and nothing that it could have been one to
        (-40, struct.pack("<I", 2**31), "truncated"),  # the length of the payload
    ],
)
def test_each_defect_of_a_report_has_its_own_reason(at, value, reason):
    assert reason_of(decode_answer, sealed(REPORT, put(at, value))) == reason


def test_bits_beyond_the_abstentions_are_refused():
    at = 60  # after the flags: 4 bytes of a count, one byte of bits
    assert reason_of(decode_answer, sealed(SHY, put(at + 4, b"\x61"))) == "malformed"
    assert reason_of(decode_answer, sealed(SHY, put(at + 4, b"\xe0"))) == "malformed"  # nobody abstains
    assert reason_of(decode_answer, sealed(SHY, put(at + 4, b"\x20"))) == "shape"  # one voter, two rows
    assert reason_of(decode_answer, sealed(SHY, put(at, struct.pack("<I", 2**31)))) == "truncated"


def test_a_refusal_off_the_list_is_refused():
    blob = sealed(encode_refusal(Refusal("site-1", 2, "diverged"), RUN), put(-8, b"sickness"))
    assert reason_of(decode_answer, blob) == "malformed"


HOSTILE = [
    # a draw of everything from 2^32 - 1 rows, of a proxy set and of as many classes
    sealed(DRAWN, put(ASKED, struct.pack("<BQIII", 1, 1, 2**32 - 1, 0, 2**32 - 1))),
    sealed(sealed(DRAWN, put(SUBJECT, b"\x01")), put(ASKED, struct.pack("<BQIII", 1, 1, 2**32 - 1, 0, 2**32 - 1))),
    sealed(DRAWN, put(ASKED, struct.pack("<BQIII", 2, 1, 2**20, 0, 2**20))),
    # 10^9 rows in gaps
    sealed(WHOLE, put(ASKED, struct.pack("<BIBI", 0, 10**9, 4, 0))),
    # 2^32 - 1 classes
    sealed(WHOLE, put(COUNT, b"\xff\xff\xff\xff")),
    sealed(DIFFERENCE, put(COUNT, b"\xff\xff\xff\xff")),
    # 255 teachers
    sealed(WHOLE, put(-29, b"\xff")),
    # 10^9 rows of votes, 2^31 abstentions
    sealed(REPORT, put(-44, struct.pack("<I", 10**9))),
    sealed(SHY, put(60, struct.pack("<I", 2**31))),
]


@pytest.mark.parametrize("blob", HOSTILE)
def test_a_declared_size_takes_no_memory(blob):
    tracemalloc.start()
    for decode in (lambda b: decode_plan(b, 1000, 3), decode_answer):
        with suppress(WireError):
            decode(blob)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000


def test_a_huge_entropy_payload_is_refused_by_its_length():
    told = plan(teachers=(soft([1, 2]),), downlink="quantised:2+entropy")
    payload = link_named(told.downlink).encode(vote_symbols(told.teachers[0], told.downlink), 3)

    def lie(body):
        body[-4 - len(payload) :] = struct.pack("<I", 10**6) + bytes(10**6)

    blob = sealed(encode_plan(told), lie)
    tracemalloc.start()
    assert reason_of(lambda b: decode_plan(b, 1000, 3), blob) == "malformed"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000  # copies of the message itself


def test_a_tiny_payload_that_stands_for_all_rows_takes_memory_for_those_rows():
    rows, draw = np.arange(20_000), Draw(1, 20_000, 0, 20_000)
    everywhere = SoftLabels.from_logits(rows, np.tile([9.0, 0.0, 0.0], (20_000, 1)))
    told = plan(rows, (everywhere,), ask_draw=draw, teacher_draw=draw, downlink="quantised:1+entropy")
    blob = encode_plan(told)
    assert len(blob) < 200
    tracemalloc.start()
    decode_plan(blob, 20_000, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000 * 3 * 100
