"""A learner with a promise learns private rows by DP-SGD and by nothing else; public rows cost nothing."""

import numpy as np
import pytest
import torch

from distillation.data import Samples
from distillation.fixed_features import fixed_features
from distillation.inputs import Column, ImageInputs, TableInputs
from distillation.learner import PrivateTraining, TorchLearner, Training
from distillation.models import build_model
from distillation.runtime import generator
from privacy import dp_training
from privacy.mechanisms.dp_sgd import DpSgdTraining
from privacy.noise import SeededEntropy
from strategies.soft_labels import SoftLabels

INPUTS = TableInputs((Column("x"), Column("y")))


def rows(count, seed):
    draw = torch.Generator().manual_seed(seed)
    return Samples(torch.randn(count, 4, generator=draw), torch.randint(3, (count,), generator=draw))


def learner(dp=None, model="mlp", **told):
    settings = Training(**{"lr": 0.1, "batch_size": 8, **told})
    return TorchLearner(
        build_model(model, (4,), 3, 0), settings, INPUTS, rows(20, 1), rows(40, 2), torch.device("cpu"), dp
    )


def weights(one):
    return torch.cat([weight.detach().flatten() for weight in one.model.parameters()])


def private(seeded=True, **told):
    return PrivateTraining(DpSgdTraining(**{"noise_multiplier": 1.0, "batch_size": 10, **told}), seeded)


def test_a_phase_is_one_of_dp_training_with_the_steps_that_were_paid_for(monkeypatch):
    specs, fit = [], dp_training.fit_privately
    monkeypatch.setattr(dp_training, "fit_privately", lambda *a, **k: specs.append(k["spec"]) or fit(*a, **k))
    one = learner(private())
    log = one.fit(3, generator(7))
    # 40 rows, 10 a step: 4 steps an epoch
    (event,) = DpSgdTraining(1.0, batch_size=10).fit_events(40, 3)
    assert [spec.event() for spec in specs] == [event]
    assert (log.steps, event.count, event.sample_rate) == (12, 12, 0.25)
    assert np.isnan(log.loss)


def test_private_rows_are_never_learnt_by_plain_gradients(monkeypatch):
    one = learner(private())
    monkeypatch.setattr(TorchLearner, "_train", lambda *_, **__: pytest.fail("plain gradients"))
    one.fit(1, generator(7))


def test_public_phases_are_those_of_a_learner_without_a_promise():
    teacher = SoftLabels.from_logits(np.arange(10), np.random.default_rng(0).normal(size=(10, 3)))
    told = []
    for dp in (None, private()):
        one = learner(dp, optimizer="adam")
        one.distil(teacher, 2, generator(3))
        one.fit_public(1, generator(4))
        told.append(weights(one))
    assert torch.equal(told[0], told[1])


def test_seeded_noise_belongs_to_the_phase_and_the_systems_to_nobody():
    again = [weights(fitted(learner(private()), seed)) for seed in (7, 7, 8, 7 + 2**32)]
    assert torch.equal(again[0], again[1])
    # torch's own generators would give 7 and 7 + 2^32 the same stream
    assert not torch.equal(again[0], again[2])
    assert not torch.equal(again[0], again[3])
    fresh = [weights(fitted(learner(private(seeded=False)), 7)) for _ in range(2)]
    assert not torch.equal(fresh[0], fresh[1])


def fitted(one, seed):
    one.fit(1, generator(seed))
    return one


def test_the_phase_is_the_one_that_dp_training_makes_of_the_same_stream():
    one, other = learner(private()), learner()
    one.fit(1, generator(7))
    own = rows(40, 2)
    dp_training.fit_privately(
        other.model,
        torch.optim.SGD(other.model.parameters(), lr=0.1),
        records=40,
        batch=lambda at: own.features[at],
        losses=lambda logits, at: torch.nn.functional.cross_entropy(logits, own.labels[at], reduction="none"),
        spec=dp_training.DpSgd(1.0, 1.0, 0.25, 4),
        entropy=SeededEntropy(7, "dp-sgd"),
        device=torch.device("cpu"),
    )
    assert torch.equal(weights(one), weights(other))


def test_a_restored_learner_goes_on_as_the_one_that_never_stopped():
    steady, stopped = (learner(private(), optimizer="adam") for _ in range(2))
    for round_ in (1, 2):
        steady.fit(1, generator(round_))
    stopped.fit(1, generator(1))
    other = learner(private(), optimizer="adam")
    other.restore(stopped.state())
    other.fit(1, generator(2))
    assert torch.equal(weights(steady), weights(other))


IMAGES = ImageInputs((1, 8, 8), scale=1 / 255, mean=(0.5,), std=(0.25,))


def pixels(count, seed):
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=draw)
    return Samples(images, torch.randint(3, (count,), generator=draw))


def scattered(dp=None):
    model = build_model("scatter-linear", (1, 8, 8), 3, 0)
    return TorchLearner(model, Training(batch_size=8), IMAGES, pixels(30, 1), pixels(20, 2), torch.device("cpu"), dp)


def test_fixed_features_are_made_once_for_all_models_that_share_the_rows(monkeypatch):
    one = scattered()
    made, forward = [], type(one.model.fixed[0]).forward
    monkeypatch.setattr(type(one.model.fixed[0]), "forward", lambda self, x: made.append(len(x)) or forward(self, x))
    one.predict(np.arange(30))
    first = sum(made)
    one.predict(np.arange(5))
    one.distil(SoftLabels.from_logits(np.arange(9), np.eye(9, 3)), 3, generator(1))
    assert sum(made) == first
    one.fit(2, generator(2))
    assert sum(made) > first


@pytest.mark.parametrize("dp", [None, private()])
def test_a_head_on_kept_features_learns_what_the_whole_model_would(dp):
    kept, whole = scattered(dp), scattered(dp)
    whole._fixed = None  # its features are made anew for every batch
    for one in (kept, whole):
        one.fit(2, generator(3))
    np.testing.assert_allclose(weights(kept), weights(whole), atol=2e-4)
    np.testing.assert_allclose(kept.logits(pixels(7, 5).features), whole.logits(pixels(7, 5).features), atol=1e-3)


def test_features_that_are_too_large_to_keep_are_made_as_they_are_needed(monkeypatch):
    from distillation import fixed_features as module

    features = torch.zeros(1000, 2)
    made = fixed_features(features, torch.nn.Identity(), lambda part: part + 1)
    assert torch.equal(made, features + 1)
    monkeypatch.setattr(module, "_LIMIT_BYTES", 1000)
    assert fixed_features(torch.zeros(1000, 2), torch.nn.Identity(), lambda part: part + 1) is None
