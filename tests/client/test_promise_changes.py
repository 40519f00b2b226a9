"""What an owner changes in mid-life is paid for or refused; weights never outlive what paid for them."""

import shutil

import numpy as np
import pytest
import torch

from client.config import PartSection, SiteConfigError
from client.node import Node
from client.state import StateStore
from distillation.data import Samples, load_samples, save_samples
from privacy.ledger import BudgetExceeded, Ledger
from strategies.messages import Refusal
from strategies.wire import decode_answer, encode_plan


def ledger(site_file, name="ledger.sqlite"):
    return Ledger.open(site_file.parent / name, durable=False)


def answered(node, plan):
    return not isinstance(decode_answer(node.answer(encode_plan(plan))), Refusal)


def weights(tensors):
    return torch.cat([value.flatten() for key, value in sorted(tensors.items()) if "model." in key])


def kept(site_file):
    return StateStore(site_file.parent / "state", durable=False).load()


# ---- a promise that is added, taken out or exchanged


def test_weights_of_plain_training_are_not_gone_on_with_under_a_promise(site_file, make_plan, plans, change, promise):
    first, second = plans(site_file, make_plan, 2)
    assert answered(Node.open(site_file), first)
    plain = weights(kept(site_file).learner)
    promise()
    # Steps of a millionth show where training began.
    change(site_file, training={"lr": 1e-6, "distil_epochs": 0})
    node = Node.open(site_file)
    assert answered(node, second)
    begun, after = weights(node.fresh().state()), weights(kept(site_file).learner)
    assert float((after - begun).norm()) < 1e-3 < 0.1 < float((after - plain).norm())


def test_under_the_same_promise_a_restarted_site_goes_on_from_its_weights(site_file, make_plan, plans, change, promise):
    promise()
    change(site_file, training={"distil_epochs": 0})
    first, second = plans(site_file, make_plan, 2)
    assert answered(Node.open(site_file), first)
    before = weights(kept(site_file).learner)
    change(site_file, training={"lr": 1e-6})
    assert answered(Node.open(site_file), second)
    assert float((weights(kept(site_file).learner) - before).norm()) < 1e-3


def test_a_site_that_begins_anew_pays_for_its_first_epochs_again(site_file, make_plan, plans, change, promise):
    change(site_file, training={"warmup_epochs": 3})
    first, second = plans(site_file, make_plan, 2)
    assert answered(Node.open(site_file), first)
    promise()
    assert answered(Node.open(site_file), second)
    with ledger(site_file) as opened:
        (event,) = opened.events()
    assert event.count == 3 * (3 + 2)  # 30 rows, 10 a step: warm-up and local epochs


def test_a_model_that_an_older_ledger_paid_for_begins_anew_in_its_child(site_file, make_plan, plans, change, promise):
    change(site_file, training={"distil_epochs": 0, "warmup_epochs": 1})
    promise(epsilon=8.0, noise_multiplier=30.0)
    first, second = plans(site_file, make_plan, 2)
    assert answered(Node.open(site_file), first)
    before = weights(kept(site_file).learner)
    promise(epsilon=8.0, noise_multiplier=30.0, ledger="new.sqlite", parent="ledger.sqlite")
    node = Node.open(site_file)
    assert torch.equal(weights(node.learner.state()), before)  # whose ledger pays is known when it is open
    assert answered(node, second)
    with ledger(site_file, "new.sqlite") as opened:
        assert opened.events()[0].count == 2 * (3 + 6)  # a warm-up before either answer


def test_a_model_is_checked_when_a_promise_is_added(site_file, make_plan, change, promise, monkeypatch):
    from distillation.models import MODELS

    class Centred(torch.nn.Module):
        def __init__(self, shape, classes):
            super().__init__()
            self.last = torch.nn.Linear(shape[0], classes)

        def forward(self, x):
            return self.last(x - x.mean(dim=0))

    monkeypatch.setitem(MODELS, "centred", Centred)
    change(site_file, model="centred")
    assert answered(Node.open(site_file), make_plan(site_file))
    promise()
    with pytest.raises(SiteConfigError, match="model 'centred' cannot be trained by dp-sgd"):
        Node.open(site_file)


@pytest.mark.parametrize("forgotten", ["state/state.safetensors", "private.safetensors.ledger"])
def test_a_promise_that_was_given_cannot_be_taken_out(site_file, make_plan, plans, change, promise, forgotten):
    promise()
    first, second = plans(site_file, make_plan, 2)
    assert answered(Node.open(site_file), first)
    (site_file.parent / forgotten).unlink()  # either of the two still knows
    change(site_file, privacy=None)
    with pytest.raises(SiteConfigError, match=r"\[privacy\] was taken out, .*: put it back.*the owner's decision"):
        Node.open(site_file)
    promise()
    assert answered(Node.open(site_file), second)


def test_the_owners_own_decision_is_another_state_and_another_copy_of_the_rows(site_file, make_plan, change, promise):
    promise()
    assert answered(Node.open(site_file), make_plan(site_file))
    shutil.copy(site_file.parent / "private.safetensors", site_file.parent / "copy.safetensors")
    change(site_file, privacy=None, private="copy.safetensors", state="other")
    assert answered(Node.open(site_file), make_plan(site_file, round=2))


def test_a_ledger_says_how_many_answers_went_before_it_unpaid(site_file, make_plan, plans, promise):
    first, second, third = plans(site_file, make_plan, 3)
    for plan in (first, second):
        assert answered(Node.open(site_file), plan)
    promise()
    for plan in (third, make_plan(site_file, round=4)):
        assert answered(Node.open(site_file), plan)
    with ledger(site_file) as opened:
        assert opened.unpaid_before == 2
        assert next(opened.rows()).body["unpaid_before"] == 2
        assert opened.count() == 2


def test_a_ledger_that_does_not_know_of_unpaid_answers_is_not_paid_into_but_its_child_is(
    site_file, make_plan, plans, change, promise, code_of, monkeypatch
):
    promise()
    first, second = plans(site_file, make_plan, 2)
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "reserve", lambda *_, **__: (_ for _ in ()).throw(BudgetExceeded("out")))
        assert code_of(Node.open(site_file), first) == "budget_out"  # the ledger is made, and nothing is paid
    change(site_file, privacy=None)
    assert answered(Node.open(site_file), first)
    promise()
    assert code_of(Node.open(site_file), second) == "internal_error"
    promise(ledger="new.sqlite", parent="ledger.sqlite")
    assert answered(Node.open(site_file), second)
    with ledger(site_file, "new.sqlite") as opened:
        assert opened.unpaid_before == 1


@pytest.mark.parametrize("other", ["gaussian-output", "pate"])
def test_another_mechanism_begins_anew(site_file, make_plan, plans, change, promise, other):
    """In a filter, where mechanisms may follow each other."""
    told = {"composition": "filter", "epsilon": 8.0, "noise_multiplier": 60.0, "allow_baseline": True}
    promise(**told)
    change(site_file, training={"local_epochs": 0, "distil_epochs": 0, "warmup_epochs": 1})
    first, second, third = plans(site_file, make_plan, 3)
    assert answered(Node.open(site_file), first)
    extra = {"teachers": 3} if other == "pate" else {}
    promise(**told, mechanism=PartSection(name=other, **extra))
    node = Node.open(site_file)
    assert answered(node, second)
    assert len(node.learner.members) == len(extra) * 2 + 1
    promise(**told)
    assert answered(Node.open(site_file), third)
    with ledger(site_file) as opened:
        # Three steps of warm-up, again after the other one's release: its model is gone.
        assert [event.count for event in opened.events() if event.KIND == "poisson_gaussian"] == [6]


@pytest.mark.parametrize("private", [False, True])
def test_another_model_is_refused_in_a_sentence(site_file, make_plan, change, promise, private):
    if private:
        promise()
    assert answered(Node.open(site_file), make_plan(site_file))
    change(site_file, model="mlp")
    with pytest.raises(SiteConfigError, match="model='mlp', and the site's state holds a 'linear': put its name back"):
        Node.open(site_file)
    change(site_file, state="other")
    assert answered(Node.open(site_file), make_plan(site_file, round=2))


# ---- pate deals rows by position


def rolled(site_file, by):
    """A nightly export without an order: the same rows, as many, elsewhere."""
    path = site_file.parent / "private.safetensors"
    samples = load_samples(path)
    save_samples(path, Samples(torch.roll(samples.features, by, 0), torch.roll(samples.labels, by, 0)))


def teachers_of(site_file, make_plan, promise, rounds, label, between):
    """The votes of pate's teachers after each round; one record has this label."""
    path = site_file.parent / "private.safetensors"
    samples = load_samples(path)
    features, labels = samples.features.clone(), samples.labels.clone()
    features[0], labels[0] = torch.tensor([300.0, 0.0, 300.0, 0.0]), label
    save_samples(path, Samples(features, labels))
    votes = []
    for round_ in range(1, rounds + 1):
        between(round_)
        node, plan = Node.open(site_file), make_plan(site_file, round=round_)
        assert answered(node, plan)
        votes.append(node.learner.votes(plan.ask_rows))
    return votes


@pytest.mark.parametrize("changed", ["order", "teachers"])
def test_a_record_moves_one_teacher_however_rows_are_ordered_and_dealt(
    make_sites, make_plan, change, tmp_path, changed
):
    from client.config import PrivacySection

    seen = []
    for label in (0, 1):
        site_file = make_sites(1, tmp_path / str(label))["site-0"]
        change(site_file, training={"local_epochs": 20, "batch_size": 1})

        def between(round_, site_file=site_file):
            if changed == "order" and round_ > 1:
                rolled(site_file, 1)
            count = 5 if changed == "order" else 3 + round_
            mechanism = PartSection(name="pate", teachers=count)
            privacy = PrivacySection(
                noise_multiplier=90.0, epsilon=8.0, composition="filter", mechanism=mechanism, seeded=True, rounds=4
            )
            change(site_file, privacy=privacy)

        seen.append(teachers_of(site_file, make_plan, None, 3, label, between))
    for one, other in zip(*seen, strict=True):
        moved = np.abs(one - other).max(axis=(1, 2)) > 0
        assert moved.sum() == 1


def test_teachers_of_the_same_rows_go_on(site_file, make_plan, change, promise):
    promise(mechanism=PartSection(name="pate", teachers=4), noise_multiplier=5.0, epsilon=None)
    change(site_file, training={"distil_epochs": 0})
    assert answered(Node.open(site_file), make_plan(site_file))
    before = weights(kept(site_file).learner)
    change(site_file, training={"lr": 1e-6})
    assert answered(Node.open(site_file), make_plan(site_file, round=2))
    assert float((weights(kept(site_file).learner) - before).norm()) < 1e-3
    rolled(site_file, 1)
    assert answered(Node.open(site_file), make_plan(site_file, round=3))
    assert float((weights(kept(site_file).learner) - before).norm()) > 0.1


# ---- what else may be changed


def test_other_rows_pay_into_the_same_ledger(site_file, make_plan, promise, code_of):
    promise(rounds=2)
    for round_ in (1, 2):
        assert answered(Node.open(site_file), make_plan(site_file, round=round_))
        path = site_file.parent / "private.safetensors"
        samples = load_samples(path)
        save_samples(path, Samples(samples.features + 1.0, samples.labels.clone()))
    assert code_of(Node.open(site_file), make_plan(site_file, round=3)) == "budget_out"


@pytest.mark.parametrize(
    ("policy", "training", "mechanism", "code"),
    [
        ({}, {"batch_size": 15}, {"name": "dp-sgd"}, "budget_out"),
        ({}, {"local_epochs": 1}, {"name": "dp-sgd"}, "budget_out"),
        ({}, {"warmup_epochs": 1}, {"name": "dp-sgd"}, "budget_out"),
        ({"max_rows_per_round": 60}, {}, {"name": "dp-sgd"}, ""),  # its votes are free
        ({"max_rows_per_round": 60}, {}, {"name": "pate", "teachers": 3}, "budget_out"),
        ({}, {"lr": 0.01}, {"name": "dp-sgd"}, ""),
    ],
)
def test_another_plan_is_another_price_and_does_not_fit(
    site_file, make_plan, change, promise, policy, training, mechanism, code
):
    promise(mechanism=PartSection(**mechanism))
    assert answered(Node.open(site_file), make_plan(site_file))
    change(site_file, policy=policy, training=training)
    told = decode_answer(Node.open(site_file).answer(encode_plan(make_plan(site_file, round=2))))
    assert getattr(told, "code", "") == code


def test_another_seed_changes_no_price(site_file, make_plan, change, promise, code_of):
    promise(rounds=2)
    for round_ in (1, 2):
        change(site_file, seed=round_)
        assert answered(Node.open(site_file), make_plan(site_file, round=round_))
    assert code_of(Node.open(site_file), make_plan(site_file, round=3)) == "budget_out"
