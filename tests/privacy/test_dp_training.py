"""DP-SGD is Abadi's algorithm, bounded for every neighbour, with the noise it pays for, and plain torch around it."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from privacy import dp_training
from privacy.audit.record_replay import Recorder, record_replay
from privacy.dp_training import DpLog, DpSgd, fit_privately
from privacy.events import Gaussian, PoissonGaussian
from privacy.mechanisms.mechanism import DrawnNoise
from privacy.noise import Draw, OsEntropy, SeededEntropy
from tests.privacy.dp_phases import (
    CPU,
    SPEC,
    drawn,
    naive,
    noise_problems,
    noise_seen,
    phase,
    records,
    sampling_problems,
    small,
    weights_of,
    without,
)

BOTH = pytest.mark.parametrize("mode", ["hooks", "ghost"])
OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.5),
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.05),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.05),
}


def told(spec, **changed):
    return dataclasses.replace(spec, **changed)


@BOTH
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_a_phase_is_the_plain_loop_over_records_with_any_optimiser(mode, optimizer):
    ours, plain = small(), small()
    for seed in (1, 2):  # the optimiser's state goes on into a second phase
        mine, theirs = OPTIMIZERS[optimizer](ours), OPTIMIZERS[optimizer](plain)
        spec, data = told(SPEC, mode=mode, clip_norm=0.4), records(12)
        phase(ours, data, spec, optimizer=mine, entropy=SeededEntropy(seed))
        naive(plain, data, spec, optimizer=theirs, entropy=SeededEntropy(seed))
        phase(ours, data, spec, optimizer=mine, entropy=SeededEntropy(seed, "again"))
        naive(plain, data, spec, optimizer=theirs, entropy=SeededEntropy(seed, "again"))
    assert torch.allclose(weights_of(ours), weights_of(plain), rtol=1e-4, atol=1e-4)


@BOTH
def test_the_size_of_physical_batches_changes_no_result(mode):
    results = []
    for size in (1, 3, 40, 512):
        model = small()
        phase(model, records(40), told(SPEC, mode=mode, physical_batch=size, steps=5))
        results.append(weights_of(model))
    for other in results[1:]:
        assert torch.allclose(results[0], other, rtol=1e-5, atol=1e-6)


@BOTH
def test_the_same_bytes_give_the_same_weights_bit_for_bit_whatever_torch_was_seeded_with(mode):
    results = []
    for seed, entropy in ((3, 1), (4, 1), (3, 2)):
        model = small()
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        phase(model, records(20), told(SPEC, mode=mode), entropy=SeededEntropy(entropy))
        assert torch.equal(torch.random.get_rng_state(), before)
        results.append(weights_of(model))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_operating_systems_noise_never_repeats():
    results = []
    for _ in range(2):
        model = small()
        phase(model, records(20), SPEC, entropy=OsEntropy())
        results.append(weights_of(model))
    assert not torch.equal(*results)


@BOTH
def test_steps_that_draw_nobody_are_noised_and_counted(mode):
    asked, model = [], small()
    spec = told(SPEC, sample_rate=1e-9, steps=3, mode=mode)

    def batch(rows):
        asked.append(rows)
        return torch.zeros(len(rows), 4)

    plain = small()
    assert phase(model, records(5), spec, batch=batch) == DpLog(3, 3)
    assert [len(rows) for rows in asked] == [2]  # the look at the losses; no step asked for a row
    naive(plain, records(5), spec)
    assert torch.allclose(weights_of(model), weights_of(plain), rtol=1e-5)
    assert not torch.equal(weights_of(model), weights_of(small()))


@BOTH
def test_a_record_that_is_not_finite_adds_nothing_and_spoils_nothing(mode):
    for value in (torch.nan, torch.inf, -torch.inf, 3e38):
        data = records(8)
        data[0][3] = value
        with_it, without_it = small(), small()
        phase(with_it, data, told(SPEC, mode=mode, sample_rate=1.0))
        phase(without_it, without(data, 3), told(SPEC, mode=mode, sample_rate=1.0))
        assert torch.isfinite(weights_of(with_it)).all()
        # 3e38 overflows in the second layer only: with finite logits it is an ordinary clipped record.
        if value != 3e38:
            assert torch.allclose(weights_of(with_it), weights_of(without_it), rtol=1e-5, atol=1e-6)


def neighbours(case):
    """Data and the same without one record, which tries to be noticed."""
    rng = np.random.default_rng(case)
    count = int(rng.integers(1, 6))
    data, row = records(count, seed=case), int(rng.integers(count))
    kinds = {
        "huge": lambda x: x * 1e18,
        "infinite": lambda x: torch.full_like(x, torch.inf),
        "nan": lambda x: torch.where(torch.arange(4) == 1, torch.nan, x),
        "large": lambda x: x * 1e3,
        "ordinary": lambda x: x,
        "tiny": lambda x: x * 1e-30,
    }
    name = sorted(kinds)[case % len(kinds)]
    data[0][row] = kinds[name](data[0][row])
    if case % 4 == 3 and count > 1:  # an opposite pair: alone neither cancels
        other = (row + 1) % count
        data[0][other], data[1][other] = data[0][row], (data[1][row] + 1) % 3
    return (data, without(data, row)) if case % 2 else (without(data, row), data)


@BOTH
def test_one_record_moves_no_step_by_more_than_the_clipping_norm(mode):
    worst = 0.0
    for case in range(200):
        spec = DpSgd(0.7, (0.1, 1.0, 30.0)[case % 3], (1.0, 0.6)[case % 2], 2, mode, 1 + case % 4)

        def run(data, noise, spec=spec, case=case):
            model = small(case)
            phase(model, data, spec, entropy=SeededEntropy(case, "masks"), noise=noise)
            return [weight.numpy() for weight in model.state_dict().values()]

        found = record_replay(run, *neighbours(case), DrawnNoise(Draw(SeededEntropy(case, "noise"))))
        assert found.problems == (), (case, found)
        assert found.cost == (Gaussian(0.7, 2),)
        worst = max(worst, found.worst)
    # Two-sided: a bound that nothing comes near would be a wrong clipping norm.
    assert 0.99 < worst <= 1.0 + 1e-5


def test_noise_has_the_law_it_pays_for_in_every_parameter_and_step():
    assert noise_problems(DpSgd(1.7, 0.3, 0.4, 1), steps=10, width=200) == ()  # ten times 1,603 values
    by_parameter = noise_seen(DpSgd(1.7, 0.3, 0.4, 1), 40, width=20)
    assert by_parameter.shape == (40, 20 * 4 + 20 + 20 * 3 + 3)
    assert np.abs(np.corrcoef(by_parameter.T))[np.triu_indices(163, 1)].max() < 5.5 / np.sqrt(40)


def test_each_record_is_drawn_with_the_same_probability_on_its_own():
    assert sampling_problems(drawn(50, 0.3, 4000), 0.3) == ()
    assert sampling_problems(drawn(20, 0.1, 6000), 0.1) == ()
    assert drawn(7, 1.0, 5).all()


@BOTH
def test_what_was_recorded_is_what_was_paid_for(mode):
    recorder = Recorder(DrawnNoise(Draw(SeededEntropy(1))))
    spec = told(SPEC, mode=mode, steps=4)
    assert phase(small(), records(9), spec, noise=recorder) == DpLog(4, 4)
    assert recorder.cost() == (Gaussian(spec.noise_multiplier, 4),)
    assert {call.sensitivity for call in recorder.calls} == {spec.clip_norm}
    assert spec.event() == PoissonGaussian(0.5, 1.0, 4)


@BOTH
def test_model_and_optimiser_are_plain_again_even_when_a_phase_fails(mode):
    model = small().eval()
    model[1].train()
    optimizer = OPTIMIZERS["momentum"](model)
    phase(model, records(9), told(SPEC, mode=mode), optimizer=optimizer)

    def broken(rows):
        if len(rows) != 2:
            raise OSError("the disk is gone")
        return torch.zeros(2, 4)

    with pytest.raises(OSError, match="the disk is gone"):
        phase(model, records(9), told(SPEC, mode=mode, sample_rate=1.0), optimizer=optimizer, batch=broken)
    assert [module.training for module in model] == [False, True, False]
    fresh = small()
    for module, plain in zip(model.modules(), fresh.modules(), strict=True):
        assert vars(module).keys() == vars(plain).keys()
        assert not module._forward_hooks
        assert not module._backward_hooks
    assert all(vars(parameter) == {} and parameter.grad is None for parameter in model.parameters())
    assert not optimizer._optimizer_step_post_hooks


@BOTH
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_a_public_step_between_private_phases_is_plain_torch_bit_for_bit(mode, optimizer):
    ours, public, data = small(), records(6, seed=9), records(15)
    mine = OPTIMIZERS[optimizer](ours)
    phase(ours, data, told(SPEC, mode=mode), optimizer=mine)
    plain = small(1)
    plain.load_state_dict(ours.state_dict())
    theirs = OPTIMIZERS[optimizer](plain)
    theirs.load_state_dict(copy.deepcopy(mine.state_dict()))
    for model, stepper in ((ours, mine), (plain, theirs)):
        functional.cross_entropy(model(public[0]), public[1]).backward()
        stepper.step()
        stepper.zero_grad()
        assert dict(vars(next(model.parameters()))) == {}
    assert torch.equal(weights_of(ours), weights_of(plain))
    for model, stepper in ((ours, mine), (plain, theirs)):
        phase(model, data, told(SPEC, mode=mode), optimizer=stepper, entropy=SeededEntropy(2))
    assert torch.equal(weights_of(ours), weights_of(plain))


def test_executed_steps_are_compared_with_those_paid_for(monkeypatch):
    def silent(self):
        for parameter in self.params:
            parameter.grad = parameter.summed_grad

    monkeypatch.setattr(dp_training._Noised, "add_noise", silent)
    with pytest.raises(RuntimeError, match=r"3 steps and 0 noise draws, 3 are paid for"):
        phase(small(), records(5), SPEC)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mode": "ew"}, "mode='ew' must be 'hooks' or 'ghost'"),
        ({"mode": "functorch"}, "mode='functorch' must be"),
        ({"clip_norm": 0.0}, "clip_norm=0.0 must be"),
        ({"clip_norm": float("inf")}, "clip_norm=inf must be"),
        ({"noise_multiplier": 0.0}, "noise_multiplier=0.0 must be"),
        ({"sample_rate": 0.0}, r"sample_rate=0.0 must be in \(0, 1\]"),
        ({"sample_rate": 1.1}, r"sample_rate=1.1 must be in \(0, 1\]"),
        ({"steps": 0}, "steps=0 must be a whole number"),
        ({"steps": 2.0}, "steps=2.0 must be a whole number"),
        ({"physical_batch": 0}, "physical_batch=0 must be a whole number"),
    ],
)
def test_a_phase_out_of_range_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        told(SPEC, **changed)


def test_calls_that_would_break_the_guarantee_are_refused():
    model, data, sure = small(), records(6), told(SPEC, sample_rate=1.0)
    with pytest.raises(ValueError, match="noise is given though entropy is private"):
        phase(model, data, SPEC, entropy=OsEntropy(), noise=DrawnNoise(Draw(SeededEntropy(1))))
    with pytest.raises(ValueError, match="optimizer holds 2 parameters, not the 4 that the model trains"):
        phase(model, data, SPEC, optimizer=torch.optim.SGD(model[0].parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"losses have shape \[\] for 6 records: use reduction='none'"):
        phase(model, data, sure, losses=lambda logits, rows: logits.sum() if len(rows) > 2 else logits.sum(1))
    with pytest.raises(ValueError, match="batch gave 1 inputs for 6 rows"):
        phase(model, data, sure, batch=lambda rows: data[0][rows] if len(rows) == 2 else data[0][:1])
    with pytest.raises(ValueError, match="must depend on record i only"):
        phase(model, data, SPEC, losses=lambda logits, rows: (logits - logits.mean(0)).square().sum(1))
    with pytest.raises(ValueError, match="records=0 must be a whole number"):
        fit_privately(
            model,
            OPTIMIZERS["sgd"](model),
            records=0,
            batch=lambda rows: rows,
            losses=lambda logits, rows: rows,
            spec=SPEC,
            entropy=OsEntropy(),
            device=CPU,
        )


@BOTH
def test_frozen_parameters_stay_and_are_not_noised(mode):
    model, plain = small(), small()
    for either in (model, plain):
        either[0].requires_grad_(False)
    phase(model, records(9), told(SPEC, mode=mode))
    assert torch.equal(model[0].weight, plain[0].weight)
    assert not torch.equal(model[2].weight, plain[2].weight)
    assert isinstance(model, nn.Sequential)
