"""What travels as a difference is learnt and heard as if it had travelled whole, also after a restart."""

import dataclasses

import numpy as np
import pytest
import torch

from client.node import Node
from distillation.learner import TorchLearner
from strategies.believing import decode_symbols, vote_symbols
from strategies.codecs import link_named
from strategies.messages import Sync
from strategies.soft_labels import SoftLabels
from strategies.tables import Table
from strategies.wire import decode_answer, encode_plan

DELTA = "quantised:1+delta+entropy"


def teacher(rows, seed=0):
    return SoftLabels.from_logits(rows, np.random.default_rng(seed).normal(size=(len(rows), 3)))


def heard(answer, plan, table):
    """What a coordinator makes of an answer: the votes' symbols, and its table after it."""
    raw = decode_answer(answer)
    symbols = decode_symbols(DELTA, raw.payload, len(plan.ask_rows), 3)
    if raw.base:
        assert raw.base == table.round == plan.have
        assert raw.base_digest == table.digest(plan.ask_rows)
        if not raw.literal:
            symbols = link_named(DELTA).apply(symbols, table.symbols[plan.ask_rows], 3)
    else:
        table = Table.empty(60, 1)
    return symbols, table.changed(plan.round, plan.ask_rows, symbols), raw.base


@pytest.mark.parametrize("restarts", [False, True])
def test_votes_travel_as_differences_to_what_was_heard_also_after_a_restart(site_file, make_plan, restarts):
    node, table = Node.open(site_file), Table.empty(60, 1)
    bases = []
    for round_, have in ((1, 0), (2, 1), (3, 1), (4, 3), (5, 4)):
        rows = np.arange(round_ % 2, 60, 2)
        # The coordinator never hears of round 2, and says so.
        plan = make_plan(site_file, round=round_, ask_rows=rows, uplink=DELTA, have=have)
        if restarts:
            node = Node.open(site_file)
        answer = node.answer(encode_plan(plan))
        assert node.answer(encode_plan(plan)) == answer
        if round_ == 2:
            continue
        symbols, table, base = heard(answer, plan, table)
        bases.append(base)
        expected = vote_symbols(node.learner.predict(rows), DELTA)
        assert symbols.tobytes() == expected.tobytes()
    # 3: the site holds what it sent in 2, the coordinator does not; so everything travels
    assert bases == [0, 0, 3, 4]


@pytest.mark.parametrize("restarts", [False, True])
def test_a_difference_is_learnt_as_the_whole_teacher_would_be(site_file, make_plan, restarts, votes, forget):
    first = teacher(np.arange(0, 60, 3), 1)
    second = SoftLabels(first.rows, np.concatenate([first.log_probs[:15], teacher(first.rows, 2).log_probs[15:]]))
    spec = "float16+delta+entropy"
    symbols = [vote_symbols(told, spec) for told in (first, second)]
    held = Table.empty(60, 6).changed(2, first.rows, symbols[0])
    now = held.changed(3, second.rows, symbols[1])
    syncs = [
        None,
        Sync(0, first.rows, held.digest(first.rows), first.rows, symbols[0]),
        Sync(2, second.rows, now.digest(second.rows), second.rows[15:], symbols[1][15:]),
    ]
    answers = []
    for whole in (False, True):
        node = Node.open(site_file)
        for round_, sync, told in zip((1, 2, 3), syncs, (None, first, second), strict=True):
            plan = make_plan(site_file, round=round_, downlink=spec)
            changed = {"teachers": (told,) if told else ()} if whole else {"sync": sync}
            if restarts:
                node = Node.open(site_file)
            answer = node.answer(encode_plan(dataclasses.replace(plan, **changed)))
        answers.append(votes(answer, plan.ask_rows))
        forget(site_file)
    np.testing.assert_array_equal(answers[0], answers[1])


def test_a_difference_to_what_is_not_held_is_refused_and_the_model_stays(site_file, make_plan, code_of):
    node, first = Node.open(site_file), make_plan(site_file)
    node.answer(encode_plan(first))
    before = node.learner.state()
    told = teacher(np.arange(5))
    symbols = vote_symbols(told, DELTA)
    digest = Table.empty(60, 1).changed(1, told.rows, symbols).digest(told.rows)
    plan = make_plan(site_file, round=2, downlink=DELTA, sync=Sync(1, told.rows, digest, told.rows, symbols))
    assert code_of(node, plan) == "need_key"
    assert all(torch.equal(value, before[key]) for key, value in node.learner.state().items())
    # The next plan carries everything, under the same round or a later one.
    key = dataclasses.replace(plan, sync=dataclasses.replace(plan.sync, base=0))
    assert decode_answer(node.answer(encode_plan(key))).round == 2


def test_another_run_begins_with_nothing_held(site_file, make_plan):
    node = Node.open(site_file)
    plan = make_plan(site_file, uplink=DELTA)
    node.answer(encode_plan(plan))
    other = make_plan(site_file, run="cd" * 16, round=2, uplink=DELTA, have=1)
    assert decode_answer(node.answer(encode_plan(other))).base == 0


def test_of_several_teachers_each_row_takes_the_one_nearest_to_the_sites_own_vote(
    site_file, make_plan, monkeypatch, plans
):
    first, second = plans(site_file, make_plan, 2)
    node = Node.open(site_file)
    node.answer(encode_plan(first))
    rows = first.ask_rows
    own, two = node.learner.predict(rows), (teacher(rows, 1), teacher(rows, 2))
    learnt = []
    monkeypatch.setattr(TorchLearner, "distil", lambda self, told, *_: learnt.append(told))
    node.answer(encode_plan(dataclasses.replace(second, teachers=two)))
    (got,) = learnt
    mine = own.probabilities()
    for at in range(len(rows)):
        apart = [float(((told.probabilities()[at] - mine[at]) ** 2).sum()) for told in two]
        np.testing.assert_allclose(got.log_probs[at], two[int(np.argmin(apart))].log_probs[at], atol=1e-6)
