"""An ensemble is its members: their mean vote, their states, each its own rows, and silence about one that diverged."""

import numpy as np
import pytest
import torch

from distillation.data import Samples
from distillation.ensemble import Ensemble
from distillation.inputs import Column, TableInputs
from distillation.learner import Diverged, TorchLearner, Training
from distillation.models import build_model
from distillation.runtime import generator
from strategies.soft_labels import SoftLabels

INPUTS = TableInputs((Column("x"), Column("y")))
PROXY = Samples(torch.randn(20, 4, generator=torch.Generator().manual_seed(1)), None)


def rows(count, seed):
    draw = torch.Generator().manual_seed(seed)
    return Samples(torch.randn(count, 4, generator=draw), torch.randint(3, (count,), generator=draw))


def member(seed, private, lr=0.1):
    model, training = build_model("linear", (4,), 3, seed), Training(lr=lr, batch_size=4)
    return TorchLearner(model, training, INPUTS, PROXY, private, torch.device("cpu"))


def test_the_ensemble_says_the_mean_of_its_members_probabilities():
    members = [member(seed, rows(8, seed)) for seed in range(3)]
    asked = np.array([0, 3, 19])
    each = np.stack([one.predict(asked).probabilities() for one in members])
    ensemble = Ensemble(members, PROXY)
    np.testing.assert_allclose(ensemble.votes(asked), each, atol=1e-6)
    np.testing.assert_allclose(ensemble.predict(asked).probabilities(), each.mean(axis=0), atol=1e-6)


def test_every_phase_is_that_of_each_member_in_turn_from_one_stream():
    teacher = SoftLabels.from_logits(np.arange(10), np.random.default_rng(0).normal(size=(10, 3)))
    ensemble = Ensemble([member(seed, rows(8, seed)) for seed in range(2)], PROXY)
    ensemble.fit(2, generator(5))
    ensemble.distil(teacher, 1, generator(6))
    alone = [member(seed, rows(8, seed)) for seed in range(2)]
    fit, distil = generator(5), generator(6)
    for one in alone:
        one.fit(2, fit)
    for one in alone:
        one.distil(teacher, 1, distil)
    for one, other in zip(ensemble.members, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_a_record_moves_one_member_only():
    changed = rows(8, 1)
    changed.features[3] += 100.0
    told = []
    for second in (rows(8, 1), changed):
        ensemble = Ensemble([member(0, rows(8, 0)), member(1, second)], PROXY)
        ensemble.fit(3, generator(5))
        told.append(ensemble.votes(np.arange(20)))
    np.testing.assert_array_equal(told[0][0], told[1][0])
    assert np.abs(told[0][1] - told[1][1]).max() > 1e-3


def test_a_state_makes_another_ensemble_the_same():
    first, second = (Ensemble([member(seed + shift, rows(8, seed)) for seed in range(3)], PROXY) for shift in (0, 9))
    first.fit(1, generator(5))
    second.restore(first.state())
    np.testing.assert_array_equal(second.votes(np.arange(20)), first.votes(np.arange(20)))
    with pytest.raises(RuntimeError):
        Ensemble([member(0, rows(8, 0)) for _ in range(4)], PROXY).restore(first.state())


def test_a_member_without_rows_is_there_and_learns_nothing_private():
    empty = Samples(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    ensemble = Ensemble([member(0, empty), member(1, rows(8, 1))], PROXY)
    before = ensemble.votes(np.arange(20))
    ensemble.fit(2, generator(5))
    np.testing.assert_array_equal(ensemble.votes(np.arange(20))[0], before[0])


def test_one_that_diverges_votes_uniformly_and_says_nothing(monkeypatch):
    ensemble = Ensemble([member(0, rows(8, 0)), member(1, rows(8, 1))], PROXY)
    with torch.no_grad():
        ensemble.members[0].model[1].weight.fill_(np.nan)
    with pytest.raises(Diverged):
        ensemble.members[0].fit(1, generator(5))
    ensemble.fit(1, generator(5))
    votes = ensemble.votes(np.arange(20))
    np.testing.assert_allclose(votes[0], 1 / 3)
    assert np.abs(votes[1] - 1 / 3).max() > 0.1
    assert np.isfinite(ensemble.logits(PROXY.features)).all()
