"""A coordinator echoes to each site where its privacy ledger stood, also after a restart, and costs others nothing."""

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest

from server.rounds import run_rounds
from server.standing import Standing
from strategies.aggregators import build_aggregator
from strategies.envelope import WireError
from strategies.messages import LedgerHead, RoundPlan
from strategies.wire import decode_answer, decode_plan, encode_plan, encode_report, plan_sha256


@pytest.fixture
def make_plan():
    """A function: a plan of the second round."""

    def make(**changed):
        return RoundPlan("ab" * 16, 2, "a1" * 32, "b2" * 32, 3, np.array([0, 5, 30]), **changed)

    return make


def head(client, round_):
    return LedgerHead(10 * round_ + int(client[1:]), bytes([round_, int(client[1:])]) * 16)


def promising(cohort, names):
    """The cohort, in which these clients have a ledger."""
    report = cohort.report
    cohort.report = lambda client, plan: (
        replace(report(client, plan), ledger=head(client, plan.round)) if client in names else report(client, plan)
    )
    return cohort


def test_each_client_hears_where_its_own_ledger_stood_after_its_last_answer(exchange, scripted):
    absent = {"c0001": lambda blob: []}
    cohort = promising(scripted(4), {"c0001", "c0002"})
    standing = None
    for round_ in (1, 2, 3):
        cohort.misbehave = absent if round_ == 2 else {}
        stored = None if standing is None else Standing.of_arrays(standing.arrays(), exchange())
        (result,) = run_rounds(
            cohort, build_aggregator("mean", {}), exchange(), round_, done=round_ - 1, standing=stored
        )
        standing = result.standing
    told = [{client: plan.ledger for client, plan in plans.items()} for plans in cohort.plans]
    assert told[0] == dict.fromkeys(["c0000", "c0001", "c0002", "c0003"])
    assert told[1] == {"c0000": None, "c0001": head("c0001", 1), "c0002": head("c0002", 1), "c0003": None}
    assert told[2] == {"c0000": None, "c0001": head("c0001", 1), "c0002": head("c0002", 2), "c0003": None}


def test_a_head_is_no_part_of_what_a_plan_asks(make_plan):
    plan = make_plan()
    other = replace(plan, ledger=LedgerHead(7, bytes(32)))
    digests = [plan_sha256(encode_plan(told), told) for told in (plan, other, replace(plan, round=3))]
    assert digests[0] == digests[1] != digests[2]
    assert decode_plan(encode_plan(other), 2**20, 3).ledger == other.ledger
    assert len(encode_plan(other)) == len(encode_plan(plan)) + 40


def test_a_ledger_without_rows_is_refused(make_plan):
    for seq in (0, -1, 2**63):
        with pytest.raises(ValueError, match=r"must be in \[1, 2\^63\)"):
            LedgerHead(seq, bytes(32))
    with pytest.raises(ValueError, match="32 bytes"):
        LedgerHead(1, bytes(31))
    blob = encode_plan(make_plan(ledger=LedgerHead(7, bytes(32))))
    for seq in (bytes(8), b"\xff" * 8):
        with pytest.raises(WireError, match="a ledger with"):
            decode_plan(resealed(blob, seq), 2**20, 3)


def resealed(blob, seq):
    """The message with another seq, its checksum made right again."""
    message = blob[:-44] + seq + blob[-36:-4]
    return message + struct.pack("<I", zlib.crc32(message))


def test_a_report_carries_its_head(scripted, make_plan):
    plan = make_plan()
    report = replace(scripted(1).report("c0000", plan), ledger=LedgerHead(2**62, bytes(range(32))))
    assert decode_answer(encode_report(report, plan)).ledger == LedgerHead(2**62, bytes(range(32)))
    assert decode_answer(encode_report(replace(report, ledger=None), plan)).ledger is None
    assert np.array_equal(plan.ask_rows, report.soft_labels.rows)
