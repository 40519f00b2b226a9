"""Where a site votes, and what leaves it beside votes: only what was asked, and only what its owner lists."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import client.statistics
from client.config import SelectorSection
from client.node import Node
from distillation.selectors.selector import Selection
from strategies.believing import believe_symbols, decode_symbols
from strategies.messages import Refusal
from strategies.soft_labels import SoftLabels
from strategies.wire import decode_answer, encode_plan


def teacher(rows, seed=0):
    return SoftLabels.from_logits(rows, np.random.default_rng(seed).normal(size=(len(rows), 3)))


@pytest.fixture
def selector(monkeypatch):
    """A selector that keeps every third row with a score of its own, and counts how often it is asked."""
    made = []

    class Thirds:
        def select(self, private, labels, proxy, rng):
            made.append((len(private), labels.tolist(), len(proxy), float(rng.uniform())))
            numbers = np.arange(len(proxy))
            return Selection(numbers % 3 == 0, (numbers + 1.0) / len(proxy))

    def features(on, learner, private, proxy):
        asked.append((on, learner))
        return private.features.numpy(), proxy.samples.features.numpy()

    asked = []
    monkeypatch.setattr(client.statistics, "build_selector", lambda name, settings: Thirds())
    monkeypatch.setattr(client.statistics, "selector_features", features)
    return SimpleNamespace(made=made, asked=asked)


@pytest.mark.parametrize("release", [["abstentions", "scores"], ["scores"]])
def test_a_site_leaves_rows_out_only_if_its_owner_lets_abstentions_leave_and_asks_its_selector_once_a_run(
    site_file, make_plan, selector, change, plans, release
):
    change(site_file, selector=SelectorSection(name="thirds", on="model"), policy={"release": release})
    first, second, third = (
        dataclasses.replace(plan, wants=wants)
        for plan, wants in zip(plans(site_file, make_plan, 3), (("scores",), (), ("scores",)), strict=True)
    )
    answers = [decode_answer(Node.open(site_file).answer(encode_plan(plan))) for plan in (first, second, third)]
    assert len(selector.made) == 1  # a restart in between reads it from disk
    assert selector.made[0][:3] == (30, Node.open(site_file)._private.labels.tolist(), 60)
    assert selector.asked[0][0] == "model"
    for plan, raw in zip((first, second, third), answers, strict=True):
        kept = plan.ask_rows[plan.ask_rows % 3 == 0] if "abstentions" in release else plan.ask_rows
        voted = plan.ask_rows if raw.voted is None else plan.ask_rows[raw.voted]
        assert voted.tolist() == kept.tolist()
        if "scores" in plan.wants:
            np.testing.assert_allclose(raw.scores, (kept + 1.0) / 60, rtol=0.045)
        else:
            assert raw.scores is None
    # another run asks it again, with the same random stream
    Node.open(site_file).answer(encode_plan(make_plan(site_file, run="cd" * 16)))
    assert len(selector.made) == 2
    assert selector.made[0] == selector.made[1]


def test_what_the_owner_changes_of_the_selector_holds_from_the_next_answer_on(
    site_file, make_plan, selector, change, plans
):
    def abstained(plan):
        told = decode_answer(Node.open(site_file).answer(encode_plan(plan))).voted
        rows = plan.ask_rows if told is None else plan.ask_rows[told]
        assert rows.tolist() in (plan.ask_rows.tolist(), plan.ask_rows[plan.ask_rows % 3 == 0].tolist())
        return len(rows) < len(plan.ask_rows)

    first, second, third, fourth = (
        dataclasses.replace(plan, ask_rows=np.arange(12)) for plan in plans(site_file, make_plan, 4)
    )
    release = {"release": ["abstentions"]}
    change(site_file, selector=SelectorSection(name="thirds"), policy=release)
    assert abstained(first)
    change(site_file, selector=None)
    assert not abstained(second)
    change(site_file, selector=SelectorSection(name="thirds"))
    assert abstained(third)
    change(site_file, selector=SelectorSection(name="thirds", on="model"))
    assert abstained(fourth)
    assert [on for on, _ in selector.asked] == ["inputs", "inputs", "model"]


def test_a_selector_looks_at_the_model_after_its_first_fit(site_file, make_plan, selector, change, spied, monkeypatch):
    change(site_file, selector=SelectorSection(name="thirds", on="model"), policy={"release": ["abstentions"]})
    node = Node.open(site_file)
    phases = spied(node)
    looked = client.statistics.selector_features
    monkeypatch.setattr(
        client.statistics, "selector_features", lambda *told: phases.append(("select", 0)) or looked(*told)
    )
    node.answer(encode_plan(make_plan(site_file)))
    assert phases == [("fit", 2), ("select", 0)]


def test_with_scores_only_a_selector_changes_no_vote(site_file, make_plan, selector, change, forget):
    blob = encode_plan(make_plan(site_file))
    plain = Node.open(site_file).answer(blob)
    forget(site_file)
    change(site_file, selector=SelectorSection(name="thirds"), policy={"release": ["scores"]})
    assert Node.open(site_file).answer(blob) == plain  # the plan asks for no scores, so not a byte tells of it


@pytest.mark.parametrize("release", [[], ["abstentions"]])
def test_without_a_selector_a_site_votes_on_everything(site_file, make_plan, change, release):
    change(site_file, policy={"release": release})
    plan = make_plan(site_file)
    assert decode_answer(Node.open(site_file).answer(encode_plan(plan))).voted is None


def test_scores_need_a_selector(site_file, make_plan, change, code_of):
    change(site_file, policy={"release": ["scores"]})
    assert code_of(Node.open(site_file), make_plan(site_file, wants=("scores",))) == "unsupported"


def test_counts_are_those_of_the_private_rows_and_leave_only_if_asked_and_allowed(
    site_file, make_plan, change, code_of
):
    plan = make_plan(site_file, wants=("counts",))
    assert code_of(Node.open(site_file), plan) == "not_released"
    change(site_file, policy={"release": ["counts"]})
    node = Node.open(site_file)
    labels = node._private.labels.tolist()
    raw = decode_answer(node.answer(encode_plan(plan)))
    assert raw.counts.tolist() == [float(labels.count(label)) for label in range(3)]
    assert raw.counts[2] == 0  # site 0 has classes a and b
    second = make_plan(site_file, round=2)
    assert decode_answer(node.answer(encode_plan(second))).counts is None


def test_class_tables_are_the_mean_outputs_by_class_and_leave_only_if_allowed(site_file, make_plan, change, code_of):
    plan = make_plan(site_file, subject="classes", ask_rows=np.arange(3))
    assert code_of(Node.open(site_file), plan) == "not_released"
    change(site_file, policy={"release": ["class-tables"]})
    node = Node.open(site_file)
    raw = decode_answer(node.answer(encode_plan(plan)))
    assert raw.voted.tolist() == [True, True, False]  # class c was never seen: no row, and no zeros
    told = believe_symbols(np.array([0, 1]), decode_symbols("float32", raw.payload, 2, 3), "float32", 3)
    node.learner.model.eval()
    with torch.no_grad():
        outputs = torch.softmax(node.learner.model(node._private.features), dim=1)
    for label in (0, 1):
        mean = outputs[node._private.labels == label].mean(dim=0)
        np.testing.assert_allclose(told.probabilities()[label], mean.numpy(), atol=1e-5)


def test_only_the_asked_classes_are_told(site_file, make_plan, change):
    change(site_file, policy={"release": ["class-tables"]})
    plan = make_plan(site_file, subject="classes", ask_rows=np.array([1, 2]))
    raw = decode_answer(Node.open(site_file).answer(encode_plan(plan)))
    assert (raw.rows, raw.voted.tolist()) == (1, [True, False])


@pytest.mark.parametrize(
    "changed",
    [{"wants": ("scores",)}, {"teachers": (teacher(np.arange(3)), teacher(np.arange(3), 1))}],
)
def test_what_has_no_meaning_for_class_tables_is_refused(site_file, make_plan, changed, change, code_of):
    change(site_file, policy={"release": ["class-tables", "scores"]}, selector=SelectorSection(name="kmeans-ratio"))
    plan = make_plan(site_file, subject="classes", ask_rows=np.arange(3), **changed)
    assert code_of(Node.open(site_file), plan) == "unsupported"


def test_class_tables_of_others_are_learnt_beside_the_labels(site_file, make_plan, change):
    change(site_file, policy={"release": ["class-tables"]}, training={"table_weight": 0.5})
    first, second = (
        make_plan(site_file, round=round_, subject="classes", ask_rows=np.arange(3), teachers=teachers)
        for round_, teachers in ((1, ()), (2, (teacher(np.array([0, 2])),)))
    )
    node = Node.open(site_file)
    told = []
    fresh = node.fresh

    def watched():
        learner = fresh()
        fit = learner.fit
        learner.fit = lambda *args, **kwargs: told.append(kwargs) or fit(*args, **kwargs)
        return learner

    node.fresh = watched
    for plan in (first, second):
        assert not isinstance(decode_answer(node.answer(encode_plan(plan))), Refusal)
    assert told[0] == {"tables": None, "table_weight": 0.5}
    assert told[1]["tables"].rows.tolist() == [0, 2]
