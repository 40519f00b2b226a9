"""A learner trains as plain torch would, shuffles, keeps its optimiser, and says when it diverges."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from distillation.data import Samples
from distillation.inputs import Column, ImageInputs, TableInputs
from distillation.learner import OPTIMIZERS, Diverged, TorchLearner, Training
from distillation.losses import kl_loss
from distillation.models import build_model
from distillation.runtime import device_named, generator
from strategies.soft_labels import SoftLabels

TABLE = TableInputs((Column("x"), Column("y")))
CPU = torch.device("cpu")


def points(rows, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, 4)).astype(np.float32)
    return Samples(torch.from_numpy(features), torch.from_numpy((features[:, 0] > 0).astype(np.int64)))


def learner(private=23, seed=0, model="mlp", **training):
    return TorchLearner(
        build_model(model, (4,), 2, seed),
        Training(**{"batch_size": 5, "lr": 0.1, "distil_lr": 0.05, **training}),
        TABLE,
        points(30, 1),
        points(private, 2) if private else None,
        CPU,
    )


def teacher(rows):
    return SoftLabels.from_logits(rows, np.random.default_rng(4).normal(size=(len(rows), 2)))


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_fit_and_distil_are_the_plain_loop(optimizer):
    ours, plain = learner(optimizer=optimizer), build_model("mlp", (4,), 2, 0)
    rows = np.array([1, 4, 9, 20, 21, 29])
    ours.distil(teacher(rows), 2, generator(7))
    ours.fit(3, generator(8))
    optimiser = OPTIMIZERS[optimizer](plain.parameters(), lr=0.05, weight_decay=0.0)
    proxy, private, answers = points(30, 1), points(23, 2), torch.from_numpy(teacher(rows).log_probs)
    for lr, epochs, seed, count in ((0.05, 2, 7, 6), (0.1, 3, 8, 23)):
        rng = generator(seed)
        optimiser.param_groups[0]["lr"] = lr
        for _ in range(epochs):
            for batch in torch.randperm(count, generator=rng).split(5):
                optimiser.zero_grad()
                if count == 6:
                    loss = kl_loss(plain(proxy.features[torch.from_numpy(rows)][batch]), answers[batch], 1.0)
                else:
                    loss = functional.cross_entropy(plain(private.features[batch]), private.labels[batch])
                loss.backward()
                optimiser.step()
    for key, value in plain.state_dict().items():
        assert torch.equal(value, ours.model.state_dict()[key])


@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adam", 0.0), ("adamw", 0.0)])
def test_a_restored_learner_goes_on_as_if_nothing_had_happened(optimizer, momentum):
    steady = learner(optimizer=optimizer, momentum=momentum)
    steady.fit(2, generator(1))
    restored = learner(seed=99, optimizer=optimizer, momentum=momentum)
    restored.restore(steady.state())
    for each in (steady, restored):
        each.fit(2, generator(2))
    for key, value in steady.state().items():
        assert torch.equal(value, restored.state()[key])


def test_a_state_is_a_copy():
    one = learner()
    before = one.state()
    kept = {key: value.clone() for key, value in before.items()}
    one.fit(1, generator(0))
    assert all(torch.equal(before[key], kept[key]) for key in kept)


def test_every_epoch_has_another_order_and_the_seed_decides_it():
    seen = []

    def spying(seed):
        seen.clear()
        one = learner()
        one.model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0][:, 0].tolist()))
        one.fit(2, generator(seed))
        return [value for batch in seen for value in batch]

    first = spying(3)
    assert sorted(first[:23]) == sorted(first[23:])
    assert first[:23] != first[23:]
    assert spying(3) == first
    assert spying(4) != first


def test_the_last_small_batch_counts_and_five_rows_train_at_batch_32():
    assert learner(private=23).fit(2, generator(0)).steps == 2 * 5
    one = learner(private=5, batch_size=32)
    before = one.state()
    assert one.fit(1, generator(0)).steps == 1
    assert not all(torch.equal(before[key], value) for key, value in one.state().items())


def test_two_predictions_of_one_model_are_bitwise_equal_and_in_row_order():
    one, rows = learner(), np.array([2, 3, 11, 28])
    first = one.predict(rows)
    assert first.log_probs.tobytes() == one.predict(rows).log_probs.tobytes()
    alone = [one.predict(rows[i : i + 1]).log_probs[0] for i in range(4)]
    np.testing.assert_allclose(first.log_probs, alone, atol=1e-6)


def test_a_uniform_teacher_teaches_something_else_than_a_real_one():
    rows = np.arange(30)
    outcomes = []
    for labels in (teacher(rows), SoftLabels.from_logits(rows, np.zeros((30, 2)))):
        one = learner()
        one.distil(labels, 20, generator(1))
        outcomes.append(one.predict(rows).log_probs)
    assert np.abs(outcomes[0] - outcomes[1]).max() > 0.1
    np.testing.assert_allclose(np.exp(outcomes[1]), 0.5, atol=0.1)


def test_the_student_has_no_private_rows():
    with pytest.raises(ValueError, match="no labelled private rows"):
        learner(private=0).fit(1, generator(0))


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("rows", [[0, 1], [1], []])
def test_a_fit_with_class_tables_is_the_plain_loop(weight, rows):
    tables = SoftLabels.from_logits(np.array(rows, np.int64), np.random.default_rng(4).normal(size=(len(rows), 2)))
    ours, plain = learner(), build_model("mlp", (4,), 2, 0)
    ours.fit(3, generator(8), tables=tables, table_weight=weight)
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.1)
    private, rng = points(23, 2), generator(8)
    taught = dict(zip(rows, tables.probabilities(), strict=True))
    for _ in range(3):
        for batch in torch.randperm(23, generator=rng).split(5):
            optimiser.zero_grad()
            terms = []
            for x, label in zip(private.features[batch], private.labels[batch].tolist(), strict=True):
                log_q = torch.log_softmax(plain(x[None])[0], dim=0)
                term = -log_q[label]
                if label in taught:  # a class that nobody else has: no term, and no zeros in its place
                    term = term - weight * sum(float(p) * log_q[c] for c, p in enumerate(taught[label]))
                terms.append(term)
            torch.stack(terms).mean().backward()
            optimiser.step()
    for key, value in plain.state_dict().items():
        np.testing.assert_allclose(value.numpy(), ours.model.state_dict()[key].numpy(), atol=2e-6)


def test_tables_of_no_class_change_nothing():
    states = []
    for tables in (None, SoftLabels.from_logits(np.empty(0, np.int64), np.empty((0, 2)))):
        one = learner()
        one.fit(2, generator(1), tables=tables)
        states.append(one.state())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_tables_of_others_pull_towards_what_they_say():
    # Class 1 looks half like class 0 to the others: the site that learns it is less sure of its own class 1.
    sure = []
    for weight in (0.0, 3.0):
        one = learner(private=200)
        tables = SoftLabels.from_logits(np.array([1]), np.zeros((1, 2)))
        one.fit(20, generator(1), tables=tables, table_weight=weight)
        sure.append(one.class_tables().probabilities()[1, 1])
    assert sure[0] > sure[1] + 0.1


def test_class_tables_are_the_mean_outputs_and_know_unseen_classes_by_their_absence():
    one = learner(private=40)
    one.fit(3, generator(2))
    tables = one.class_tables()
    assert tables.rows.tolist() == [0, 1]
    private = points(40, 2)
    one.model.eval()
    with torch.no_grad():
        outputs = torch.softmax(one.model(private.features), dim=1).double()
    for label in (0, 1):
        mean = outputs[private.labels == label].mean(dim=0)
        np.testing.assert_allclose(tables.probabilities()[label], mean.numpy(), atol=1e-6)
    one._private = Samples(private.features, torch.ones_like(private.labels))
    assert one.class_tables().rows.tolist() == [1]


def test_class_tables_need_private_rows_and_a_finite_model():
    with pytest.raises(ValueError, match="no labelled private rows to average"):
        learner(private=0).class_tables()
    one = learner()
    with torch.no_grad():
        next(one.model.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged, match="lower lr"):
        one.class_tables()


def test_public_epochs_need_public_labels():
    one = learner()
    one._proxy = Samples(one._proxy.features, None)
    with pytest.raises(ValueError, match="set public_epochs=0"):
        one.fit_public(1, generator(0))


def test_a_setting_that_would_do_nothing_is_refused():
    with pytest.raises(ValueError, match=r"momentum=0\.9 does nothing with 'adam'"):
        Training(optimizer="adam", momentum=0.9)


def test_divergence_is_said_and_not_voted():
    one = learner(lr=1e30)
    with pytest.raises(Diverged, match="lower lr"):
        one.fit(20, generator(0))
    one = learner()
    with torch.no_grad():
        next(one.model.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged, match="lower lr"):
        one.predict(np.array([1]))


def test_inputs_scaled_batch_by_batch_are_those_scaled_at_once(monkeypatch):
    images = Samples(torch.randint(0, 256, (12, 1, 4, 4), generator=generator(0)).to(torch.uint8), torch.arange(12) % 2)
    inputs = ImageInputs((1, 4, 4), 1 / 255, (0.5,), (0.25,))
    states = []
    for limit in (2**28, 0):
        monkeypatch.setattr("distillation.learner._PREPARE_LIMIT", limit)
        one = TorchLearner(build_model("linear", (1, 4, 4), 2, 0), Training(), inputs, images, images, CPU)
        one.fit(2, generator(3))
        states.append(one.state())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "mps", "meta", "", "cuda:x"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ValueError, match="device="):
        device_named(name)


def test_auto_is_a_device():
    assert device_named("auto").type in ("cpu", "cuda")
