"""A small private phase, the same by the dumbest loop, and the detectors that bugs are shown to."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

from privacy import dp_training
from privacy.audit.noise_tests import examine, largest_correlation
from privacy.dp_spec import DpSgd
from privacy.noise import Draw, SeededEntropy

CPU = torch.device("cpu")


def records(count, shape=(4,), classes=3, seed=0):
    """Features, labels and weights; a weight of 0 takes the record out: it adds nothing."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=rng)
    return torch.randn((count, *shape), generator=rng), labels, torch.ones(count)


def without(data, row):
    """The same data, where one record is nothing."""
    features, labels, weights = (part.clone() for part in data)
    features[row], weights[row] = 0.0, 0.0
    return features, labels, weights


def small(seed=0, width=6):
    """A model of 4 inputs and 3 classes."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def phase(model, data, spec, *, optimizer=None, entropy=None, **options):
    """fit_privately on all of data."""
    features, labels, weights = data

    def losses(logits, rows):
        return functional.cross_entropy(logits, labels[rows], reduction="none") * weights[rows]

    told = {"batch": lambda rows: features[rows], "losses": losses, **options}
    return dp_training.fit_privately(
        model,
        optimizer or torch.optim.SGD(model.parameters(), lr=0.5),
        records=len(features),
        spec=spec,
        entropy=entropy or SeededEntropy(1, "phase"),
        device=CPU,
        **told,
    )


def naive(model, data, spec, *, optimizer=None, entropy=None):
    """Abadi et al. 2016, algorithm 1, record by record; the same masks and noise as a phase with this entropy."""
    features, labels, weights = data
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.5)
    draw, parameters = Draw(entropy or SeededEntropy(1, "phase")), list(model.parameters())
    for _ in range(spec.steps):
        drawn = np.flatnonzero(draw.uniform((len(features),)) < spec.sample_rate)
        total = torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
        for row in drawn:
            loss = functional.cross_entropy(model(features[row : row + 1]), labels[row : row + 1]) * weights[row]
            gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)]).double()
            if torch.isfinite(gradient).all():
                total += gradient * min(1.0, spec.clip_norm / (float(gradient.norm()) + 1e-12))
        total += torch.from_numpy(draw.normal((len(total),))) * spec.noise_multiplier * spec.clip_norm
        total /= spec.sample_rate * len(features)
        parts = total.float().split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).clone()
        optimizer.step()
    optimizer.zero_grad()


def weights_of(model):
    """All parameters in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def noise_seen(spec, steps, width=200, count=20, seed=5):
    """[steps, parameters] what steps on records without any gradient add to the weights, over its declared size."""
    model, data = small(width=width), records(count)
    data[2].zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    entropy, seen = SeededEntropy(seed, "noise"), []
    for _ in range(steps):
        before = weights_of(model).double()
        phase(model, data, spec, optimizer=optimizer, entropy=entropy)
        seen.append((before - weights_of(model).double()) * spec.sample_rate * count)
    return torch.stack(seen).numpy() / (spec.noise_multiplier * spec.clip_norm)


def noise_problems(spec, steps=4, **options):
    """The noise detector on the weights themselves."""
    return examine(noise_seen(spec, steps, **options)).problems()


def drawn(count, rate, steps, seed=3):
    """[steps, count] which records a phase's steps draw."""
    draw = Draw(SeededEntropy(seed, "masks"))
    masks = np.zeros((steps, count), bool)
    for mask in masks:
        mask[dp_training._sampled(draw, count, rate).numpy()] = True
    return masks


def sampling_problems(masks, rate, p_value=1e-4):
    """Whether masks are independent Bernoulli(rate): sizes of steps, draws of each record, both together, and pairs.

    Standardised squares of sums are chi-square; too even is as wrong as too uneven.
    """
    found, spread = [], rate * (1.0 - rate)
    for what, axis in (("batch sizes", (1,)), ("draws a record", (0,)), ("draws in all", (0, 1))):
        sums = np.atleast_1d(masks.sum(axis))
        of = masks.size / len(sums)
        square = float(((sums - rate * of) ** 2).sum() / (spread * of))
        chance = stats.chi2.sf(square, len(sums))
        if len(sums) > 1:
            chance = 2.0 * min(chance, stats.chi2.cdf(square, len(sums)))
        if not chance > p_value:
            found.append(f"{what} are not binomial: p={chance:.2g}")
    if not largest_correlation(masks.T.astype(float)) < 6.0 / math.sqrt(len(masks)):
        found.append("records are drawn together")
    return tuple(found)


SPEC = DpSgd(1.0, 1.0, 0.5, 3)
