"""FedAvg: the baseline whose weights leave the sites; every site trains the student's model.

McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", algorithm 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save

from distillation.data import Proxy, Samples
from distillation.export import write_table
from distillation.learner import Diverged, TorchLearner, Training
from distillation.models import build_model
from distillation.runtime import device_named, generator
from strategies.seeds import stream_seed
from strategies.selection import participants

if TYPE_CHECKING:
    from simulations.engines.in_process import WorkerPool


@dataclass(frozen=True, slots=True)
class Job:
    """What every site does in every round.

    Attributes:
        model: a key of MODELS, the same at all sites.
        training: its optimiser begins anew in each round, as in the paper.
        epochs: passes over the private rows in each round.
        seed: the experiment's.
        device: where a site computes.
    """

    model: str
    training: Training
    epochs: int
    seed: int
    device: str

    def to_json(self) -> dict[str, Any]:
        """Plain values for a worker's command."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Job:
        """What to_json described."""
        return cls(**{**told, "training": Training(**told["training"])})


@dataclass(frozen=True, slots=True)
class FedAvgRound:
    """One row of fedavg.csv: test accuracy of the averaged weights, bytes of all clients of the round."""

    round: int
    accuracy: float
    upload_bytes: int
    download_bytes: int
    seconds: float


def run_fedavg(
    pool: WorkerPool,
    rows: Mapping[str, int],
    weights: bytes,
    job: Job,
    *,
    rounds: int,
    participation: float,
    there: Callable[[int], Sequence[str]] | None = None,
) -> Iterator[tuple[FedAvgRound, bytes]]:
    """Every round and the weights after it.

    Args:
        pool: where the sites are.
        rows: private rows by site.
        weights: the first ones, of first_weights.
        participation: share of the sites that a round asks; they are the ones that the federation's round asks.
        there: the sites that a round may ask; None: all.

    Raises:
        WorkerError: a site diverged, or its worker could not go on.

    Guarantees:
        The weights do not depend on the number of workers or on the order of their answers.
    """
    told = job.to_json()
    pool.share(weights)
    for round_ in range(1, rounds + 1):
        started = time.perf_counter()
        asked = participants(job.seed, round_, tuple(rows) if there is None else there(round_), participation)
        download_bytes = len(asked) * len(weights)
        commands = [{"do": "fedavg", "site": site, "round": round_, "job": told} for site in asked]
        updates = {command["site"]: blob for command, _, blob in pool.answers(commands)}
        weights = encoded(average((rows[site], load(updates[site])) for site in sorted(updates)))
        pool.share(weights)
        accuracies = [accuracy for _, accuracy in pool.tasks([{"do": "fedavg_accuracy", "job": told}])]
        upload_bytes = sum(map(len, updates.values()))
        seconds = time.perf_counter() - started
        yield FedAvgRound(round_, accuracies[0], upload_bytes, download_bytes, seconds), weights


def first_weights(model: str, shape: Sequence[int], classes: int, seed: int) -> bytes:
    """The weights that the student begins with, too."""
    return encoded(build_model(model, tuple(shape), classes, stream_seed(seed, "model", "student")).state_dict())


def encoded(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Weights as they travel: safetensors, a header and then 4 bytes a float32."""
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def learner_of(weights: bytes, job: Job, proxy: Proxy, private: Samples | None) -> TorchLearner:
    """The model with these weights and a new optimiser."""
    model = build_model(job.model, tuple(proxy.inputs.shape), len(proxy.classes), seed=0)
    model.load_state_dict(load(weights))
    return TorchLearner(model, job.training, proxy.inputs, proxy.samples, private, device_named(job.device))


def local_update(weights: bytes, job: Job, site: str, round_: int, proxy: Proxy, private: Samples) -> bytes:
    """ClientUpdate: a site's weights after its private rows, in the batches that its own model sees in this round.

    Raises:
        Diverged: the loss or a weight is no longer finite.
    """
    learner = learner_of(weights, job, proxy, private)
    learner.fit(job.epochs, generator(stream_seed(job.seed, "fit", site, round_)))
    trained = learner.model.state_dict()
    # The loss is taken before the last step: that step alone can still overflow.
    if not all(torch.isfinite(tensor).all() for tensor in trained.values()):
        raise Diverged(f"the weights after round {round_} are not finite: lower lr")
    return encoded(trained)


def average(updates: Iterable[tuple[int, Mapping[str, torch.Tensor]]]) -> dict[str, torch.Tensor]:
    """Mean of weights, each site's in proportion to its rows; of integer buffers, which count, the maximum.

    Args:
        updates: (private rows, weights) of each site; sums are taken in this order, in float64.

    Raises:
        ValueError: no rows at all.

    Guarantees:
        One site's weights come back bit by bit.

    >>> average([(1, {"w": torch.tensor([0.0])}), (3, {"w": torch.tensor([4.0])})])
    {'w': tensor([3.])}
    """
    total, sums, types = 0, dict[str, torch.Tensor](), dict[str, torch.dtype]()
    for rows, tensors in updates:
        total += rows
        for name, tensor in tensors.items():
            types[name] = tensor.dtype
            if tensor.is_floating_point():
                part = tensor.to(torch.float64) * rows
                sums[name] = sums[name] + part if name in sums else part
            else:
                sums[name] = torch.maximum(sums[name], tensor) if name in sums else tensor
    if total == 0:
        raise ValueError("0 rows in all: an average needs a site with at least one")
    return {
        name: (value / total).to(types[name]) if types[name].is_floating_point else value
        for name, value in sums.items()
    }


def write_rounds(path: Path, rounds: Sequence[FedAvgRound]) -> None:
    """Replace fedavg.csv."""
    write_table(path, [field.name for field in fields(FedAvgRound)], map(astuple, rounds))


def totals(rounds: Sequence[FedAvgRound]) -> dict[str, Any]:
    """What run.json says: the last accuracy, and the sums."""
    return {
        "accuracy": rounds[-1].accuracy,
        "rounds": len(rounds),
        "upload_bytes": sum(row.upload_bytes for row in rounds),
        "download_bytes": sum(row.download_bytes for row in rounds),
        "seconds": round(sum(row.seconds for row in rounds), 3),
    }
