"""A site that promises privacy pays before it looks, seals before it sends, and never noises one answer twice."""

import shutil
import sqlite3

import numpy as np
import pytest
import torch

from client.config import PartSection, SiteConfigError, load_site, write_site
from client.node import Node
from distillation.learner import TorchLearner
from privacy.accounting import epsilon_of, group_epsilon_of
from privacy.events import Gaussian, PoissonGaussian, RandomizedResponse
from privacy.ledger import Ledger
from privacy.statement import statement_of
from strategies.messages import LedgerHead, Refusal
from strategies.wire import decode_answer, encode_plan

# 30 rows, 10 a step, 2 epochs an answer: q = 1/3, 6 steps.
STEPS = 6


def ledger(site_file):
    return Ledger.open(site_file.parent / "ledger.sqlite", durable=False)


def kinds(site_file):
    with ledger(site_file) as opened:
        return [row.kind for row in opened.rows()]


def answered(blob):
    return not isinstance(decode_answer(blob), Refusal)


@pytest.fixture
def untouched(monkeypatch):
    """A function: from then on every look at a private row is an error."""

    def arm():
        for phase in ("fit", "_fit_privately", "distil", "fit_public"):
            monkeypatch.setattr(TorchLearner, phase, lambda *_, **__: pytest.fail("a model was trained"))

    return arm


def test_an_answer_is_paid_for_sealed_and_says_where_the_ledger_stands(site_file, make_plan, promise):
    promise()
    answer = Node.open(site_file).answer(encode_plan(make_plan(site_file)))
    with ledger(site_file) as opened:
        rows = list(opened.rows())
        (event,) = opened.events()
        opened.check(decode_answer(answer).ledger.seq, decode_answer(answer).ledger.digest)
        assert opened.charged()[0] <= 3.0 < opened.charged()[0] + 0.01
    assert [row.kind for row in rows] == ["OPEN", "PLAN", "SPENT", "SEALED"]
    assert (event.sample_rate, event.count) == (1 / 3, STEPS)
    assert decode_answer(answer).ledger.seq == 3  # of the row that paid: the one that seals holds the answer's hash
    assert rows[3].body["bytes"] == len(answer)


def test_the_site_and_not_the_coordinator_sets_the_noise(site_file, make_plan, promise):
    promise(epsilon=None, noise_multiplier=2.5)
    Node.open(site_file).answer(encode_plan(make_plan(site_file)))
    with ledger(site_file) as opened:
        assert opened.events() == (PoissonGaussian(1 / 3, 2.5, STEPS),)
        assert opened.plans()[next(iter(opened.plans()))].events == (PoissonGaussian(1 / 3, 2.5, 3 * STEPS),)


def test_a_patients_rows_are_covered_together_and_the_statement_says_so(site_file, make_plan, promise, code_of):
    promise(group_size=4)
    assert answered(Node.open(site_file).answer(encode_plan(make_plan(site_file))))
    with ledger(site_file) as opened:
        (plan,) = opened.plans().values()
        told = statement_of(opened, "site-0")
    assert group_epsilon_of(plan.events, told.delta, 4) <= 3.0 < group_epsilon_of(plan.events, told.delta, 4) + 0.01
    assert epsilon_of(plan.events, told.delta) < 1.5
    assert (told.unit, told.budget) == ("group(4)", 3.0)
    assert told.sentence().startswith("SIMULATION, NOT PRIVATE: (eps=")
    assert ", group(4), zero-out" in told.sentence()


def test_a_site_out_of_budget_stops_answering_before_it_looks_at_a_row(
    site_file, make_plan, plans, promise, code_of, untouched
):
    promise()
    all_plans = plans(site_file, make_plan, 5)
    node = Node.open(site_file)
    for plan in all_plans[:3]:
        assert answered(node.answer(encode_plan(plan)))
    untouched()
    before = kinds(site_file)
    assert [code_of(node, plan) for plan in all_plans[3:]] == ["budget_out", "budget_out"]
    # nor for another run, nor after a restart, nor for a coordinator that has forgotten everything
    assert code_of(Node.open(site_file), make_plan(site_file, run="cd" * 16)) == "budget_out"
    (site_file.parent / "state" / "state.safetensors").unlink()
    assert code_of(Node.open(site_file), make_plan(site_file, run="ef" * 16)) == "budget_out"
    assert kinds(site_file) == before


def test_the_same_plan_gets_the_bytes_that_were_sent_even_if_the_sites_state_is_lost(
    site_file, make_plan, promise, untouched
):
    promise(seeded=False)
    blob = encode_plan(make_plan(site_file))
    first = Node.open(site_file).answer(blob)
    untouched()
    assert Node.open(site_file).answer(blob) == first
    (site_file.parent / "state" / "state.safetensors").unlink()
    assert Node.open(site_file).answer(blob) == first
    assert kinds(site_file) == ["OPEN", "PLAN", "SPENT", "SEALED"]


def test_noise_that_is_not_seeded_is_never_the_same(site_file, make_plan, promise, votes, start_anew):
    promise(seeded=False)
    plan = make_plan(site_file)
    told = []
    for _ in range(2):
        told.append(votes(Node.open(site_file).answer(encode_plan(plan)), plan.ask_rows))
        start_anew(site_file)
    assert np.abs(told[0] - told[1]).max() > 1e-3


def test_seeded_noise_is_that_of_the_phase_and_comes_back(site_file, make_plan, plans, promise, start_anew):
    promise()
    all_plans = [encode_plan(plan) for plan in plans(site_file, make_plan, 3)]
    restarted = [Node.open(site_file).answer(blob) for blob in all_plans]
    start_anew(site_file)
    node = Node.open(site_file)
    # The ledger's UUID is another one, and so are its heads; all else is the same.
    told = [decode_answer(node.answer(blob)) for blob in all_plans]
    assert [answer.payload for answer in told] == [decode_answer(blob).payload for blob in restarted]


def interrupted(node, blob, monkeypatch, where="_fit_privately"):
    with monkeypatch.context() as patched:
        patched.setattr(TorchLearner, where, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            node.answer(blob)


def test_an_answer_that_was_lost_with_its_process_is_skipped(
    site_file, make_plan, plans, promise, code_of, monkeypatch
):
    promise(seeded=False)
    first, second = plans(site_file, make_plan, 2)
    interrupted(Node.open(site_file), encode_plan(first), monkeypatch)
    assert kinds(site_file) == ["OPEN", "PLAN", "SPENT"]
    assert [code_of(Node.open(site_file), first) for _ in range(2)] == ["release_lost", "release_lost"]
    assert answered(Node.open(site_file).answer(encode_plan(second)))
    with ledger(site_file) as opened:
        assert [event.count for event in opened.events()] == [2 * STEPS]  # the lost one stays paid


def test_or_it_is_paid_for_again_as_long_as_there_is_budget(site_file, make_plan, promise, code_of, monkeypatch):
    promise(seeded=False, lost="pay-again")
    plan = make_plan(site_file)
    for _ in range(2):
        interrupted(Node.open(site_file), encode_plan(plan), monkeypatch)
    answer = Node.open(site_file).answer(encode_plan(plan))
    assert answered(answer)
    assert Node.open(site_file).answer(encode_plan(plan)) == answer
    assert kinds(site_file) == ["OPEN", "PLAN", "SPENT", "SPENT", "SPENT", "SEALED"]
    assert code_of(Node.open(site_file), make_plan(site_file, round=2)) == "budget_out"


def test_in_a_simulation_a_lost_answer_is_computed_again_for_what_was_paid(site_file, make_plan, promise, monkeypatch):
    promise()
    blob = encode_plan(make_plan(site_file))
    interrupted(Node.open(site_file), blob, monkeypatch)
    assert answered(Node.open(site_file).answer(blob))
    assert kinds(site_file) == ["OPEN", "PLAN", "SPENT", "SEALED"]


@pytest.mark.parametrize("forgotten", [False, True])
def test_an_answer_that_was_kept_and_not_sealed_is_sealed_and_sent(
    site_file, make_plan, plans, promise, monkeypatch, forgotten, untouched
):
    promise(seeded=False)
    first, second = plans(site_file, make_plan, 2)
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "store", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Node.open(site_file).answer(encode_plan(first))
    assert kinds(site_file) == ["OPEN", "PLAN", "SPENT"]
    if forgotten:  # the coordinator goes on without it
        assert answered(Node.open(site_file).answer(encode_plan(second)))
        assert kinds(site_file) == ["OPEN", "PLAN", "SPENT", "SEALED", "SPENT", "SEALED"]
    else:
        untouched()
        assert answered(Node.open(site_file).answer(encode_plan(first)))
        assert kinds(site_file) == ["OPEN", "PLAN", "SPENT", "SEALED"]


def test_a_ledger_that_was_put_back_is_noticed_by_the_coordinators_echo(site_file, make_plan, plans, promise, code_of):
    promise()
    first, second = plans(site_file, make_plan, 2)
    path = site_file.parent / "ledger.sqlite"
    node = Node.open(site_file)
    node.answer(encode_plan(first))
    shutil.copy(path, path.with_suffix(".old"))
    head = decode_answer(node.answer(encode_plan(second))).ledger
    shutil.copy(path.with_suffix(".old"), path)
    third = make_plan(site_file, round=3, ledger=head)
    assert code_of(Node.open(site_file), third) == "ledger_rolled_back"
    invented = make_plan(site_file, round=3, ledger=LedgerHead(2, bytes(32)))
    assert code_of(Node.open(site_file), invented) == "ledger_rolled_back"
    assert kinds(site_file) == ["OPEN", "PLAN", "SPENT", "SEALED"]


def test_a_ledger_that_was_deleted_is_missed_by_the_sites_own_state(site_file, make_plan, plans, promise, code_of):
    promise()
    first, second = plans(site_file, make_plan, 2)
    Node.open(site_file).answer(encode_plan(first))
    (site_file.parent / "ledger.sqlite").unlink()
    (site_file.parent / "private.safetensors.ledger").unlink()
    assert [code_of(Node.open(site_file), plan) for plan in (second, first)] == 2 * ["ledger_rolled_back"]


@pytest.mark.parametrize(
    "changed", [{"epsilon": 8.0}, {"delta": 1e-3}, {"composition": "filter"}, {"seeded": False}, {"group_size": 2}]
)
def test_a_promise_cannot_be_changed_once_something_was_released(
    site_file, make_plan, plans, promise, code_of, changed, untouched
):
    promise()
    first, second = plans(site_file, make_plan, 2)
    Node.open(site_file).answer(encode_plan(first))
    promise(**changed)
    untouched()
    assert code_of(Node.open(site_file), second) == "internal_error"


def test_less_noise_does_not_fit_a_budget_that_is_reserved(site_file, make_plan, plans, promise, code_of, untouched):
    promise()
    first, second = plans(site_file, make_plan, 2)
    Node.open(site_file).answer(encode_plan(first))
    promise(noise_multiplier=0.5)
    untouched()
    assert code_of(Node.open(site_file), second) == "budget_out"


def test_a_filter_lets_the_noise_change_and_still_refuses(site_file, make_plan, plans, promise, code_of):
    promise(composition="filter", noise_multiplier=3.0)
    all_plans = plans(site_file, make_plan, 9)
    assert answered(Node.open(site_file).answer(encode_plan(all_plans[0])))
    promise(composition="filter", noise_multiplier=4.0)
    with ledger(site_file) as opened:
        order = opened.terms.order
    # The order is fixed by the first promise; another one would be another ledger.
    codes = [decode_answer(Node.open(site_file).answer(encode_plan(plan))) for plan in all_plans[1:]]
    with ledger(site_file) as opened:
        assert opened.terms.order == order
        assert opened.epsilon() <= 3.0
    assert {getattr(code, "code", "answered") for code in codes} <= {"answered", "budget_out"}


def test_local_training_is_private_or_not_at_all(site_file, make_plan, promise, monkeypatch):
    promise()
    monkeypatch.setattr(TorchLearner, "_classify", lambda *_: pytest.fail("plain gradients of private rows"))
    assert answered(Node.open(site_file).answer(encode_plan(make_plan(site_file))))


@pytest.mark.parametrize(
    ("mechanism", "event"),
    [
        (PartSection(name="pate", teachers=5), lambda noise: Gaussian(noise, 30)),
        (PartSection(name="k-rr"), lambda noise: RandomizedResponse(1 / noise, 3, 30)),
        (PartSection(name="gaussian-output"), lambda noise: Gaussian(noise, 1)),
    ],
)
def test_mechanisms_on_votes_pay_by_what_is_asked(site_file, make_plan, promise, votes, mechanism, event):
    promise(mechanism=mechanism, noise_multiplier=20.0, epsilon=None, allow_baseline=True)
    plan = make_plan(site_file)
    answer = Node.open(site_file).answer(encode_plan(plan))
    assert votes(answer, plan.ask_rows).shape == (30, 3)
    with ledger(site_file) as opened:
        assert opened.events() == (event(20.0),)


def test_a_teacher_has_a_row_at_least_and_sampling_that_samples_nothing_is_said(site_file, promise, caplog):
    promise(mechanism=PartSection(name="pate", teachers=31), noise_multiplier=5.0, epsilon=None)
    with pytest.raises(SiteConfigError, match="teachers=31 must be at most the site's 30 rows"):
        Node.open(site_file)
    promise(mechanism=PartSection(name="pate", teachers=30), noise_multiplier=5.0, epsilon=None)
    assert len(Node.open(site_file).learner.members) == 30
    for size, said in ((30, False), (31, True)):
        promise(mechanism=PartSection(name="dp-sgd", batch_size=size), noise_multiplier=5.125, epsilon=None)
        Node.open(site_file)
        assert ("batch_size=31 is above the site's 30 rows: every step takes all" in caplog.text) == said


def test_pate_shows_each_record_to_one_teacher(site_file, make_plan, promise):
    promise(mechanism=PartSection(name="pate", teachers=4), noise_multiplier=5.0, epsilon=None)
    node = Node.open(site_file)
    seen = [member._private.features for member in node.learner.members]
    assert [len(rows) for rows in seen] == [8, 8, 7, 7]
    everything = sorted(map(tuple, np.concatenate([rows.numpy() for rows in seen]).tolist()))
    assert everything == sorted(map(tuple, node._private.features.numpy().tolist()))


def test_no_teacher_is_chosen_by_records_that_other_models_saw(site_file, make_plan, plans, promise, code_of):
    promise(mechanism=PartSection(name="pate", teachers=4), noise_multiplier=5.0, epsilon=None)
    _, second = plans(site_file, make_plan, 2)
    several = make_plan(site_file, round=2, teachers=2 * second.teachers)
    assert code_of(Node.open(site_file), several) == "unsupported"


@pytest.mark.parametrize("mechanism", ["k-rr", "gaussian-output"])
def test_a_baseline_must_be_switched_on_by_name(site_file, promise, mechanism):
    promise(mechanism=PartSection(name=mechanism))
    with pytest.raises(SiteConfigError, match="allow_baseline"):
        Node.open(site_file)


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"mechanism": PartSection(name="magic")}, "privacy: unknown mechanism 'magic'; known: "),
        ({"mechanism": PartSection(name="client-sum", clip=1.0, clients=3)}, "is the coordinator's"),
        ({"mechanism": PartSection(name="dp-sgd", clip_nrm=1.0)}, "dp-sgd has no setting 'clip_nrm'"),
        ({"delta": 0.5}, "delta=0.5"),
        ({"epsilon": 60.0}, "epsilon=60.0"),
        ({"group_size": 2, "composition": "filter"}, "group_size=2 needs composition='plan'"),
    ],
)
def test_a_promise_that_cannot_be_kept_is_refused_when_the_site_opens(site_file, promise, told, sentence):
    promise(**told)
    with pytest.raises(SiteConfigError, match=sentence):
        Node.open(site_file)


@pytest.mark.parametrize("told", [{"release": ["counts"]}, {"release": ["class-tables"]}])
def test_statistics_that_nobody_pays_for_do_not_go_with_a_promise(site_file, change, promise, told):
    promise()
    config = load_site(site_file)
    write_site(site_file, config.model_copy(update={"policy": config.policy.model_copy(update=told)}))
    with pytest.raises(SiteConfigError, match="does not pay for"):
        load_site(site_file)


def test_two_runs_spend_from_one_budget(site_file, make_plan, promise, code_of):
    promise()
    runs = [make_plan(site_file, run=f"{number:032x}") for number in range(4)]
    node = Node.open(site_file)
    for plan in runs[:3]:
        assert answered(node.answer(encode_plan(plan)))
    assert code_of(node, runs[3]) == "budget_out"
    with ledger(site_file) as opened:
        assert [opened.count(plan.run) for plan in runs] == [1, 1, 1, 0]


def test_the_ledger_is_flushed_to_the_disk_where_a_power_cut_matters(site_file, make_plan, promise, monkeypatch):
    promise()
    asked, connect = [], sqlite3.connect

    class Watched(sqlite3.Connection):
        def execute(self, sql, *rest):
            asked.append(sql)
            return super().execute(sql, *rest)

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, factory=Watched, **kwargs))
    Node.open(site_file).answer(encode_plan(make_plan(site_file)))
    assert "PRAGMA synchronous=2" in asked
    asked.clear()
    Node.open(site_file).answer(encode_plan(make_plan(site_file, round=2)))  # a ledger that is there already
    assert "PRAGMA synchronous=2" in asked
    assert "PRAGMA synchronous=0" not in asked
    asked.clear()
    Node.open(site_file, durable=False).answer(encode_plan(make_plan(site_file, round=3)))
    assert "PRAGMA synchronous=0" in asked
    assert "PRAGMA synchronous=2" not in asked


class _Normed(torch.nn.Module):
    """A model with a batch statistic, and so without a per-record gradient."""

    def __init__(self, shape, classes):
        super().__init__()
        self.stack = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.BatchNorm1d(shape[0]), torch.nn.Linear(shape[0], classes)
        )

    def forward(self, x):
        return self.stack(x)


class _Centred(torch.nn.Module):
    """A model that subtracts the mean of the batch."""

    def __init__(self, shape, classes):
        super().__init__()
        self.last = torch.nn.Linear(shape[0], classes)

    def forward(self, x):
        return self.last(x - x.mean(dim=0))


@pytest.mark.parametrize(("model", "named"), [(_Normed, "stack.1"), (_Centred, "records")])
def test_a_model_whose_records_are_not_apart_is_refused_before_anything_is_paid(
    site_file, change, promise, monkeypatch, model, named
):
    from distillation.models import MODELS

    monkeypatch.setitem(MODELS, model.__name__, model)
    promise()
    change(site_file, model=model.__name__)
    with pytest.raises(SiteConfigError, match=f"model '{model.__name__}' cannot be trained by dp-sgd: .*{named}"):
        Node.open(site_file)
    assert not (site_file.parent / "ledger.sqlite").exists()
