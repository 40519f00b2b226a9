"""What the federation is compared with: every client alone, all private rows together, and FedAvg."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from client.node import Node
from distillation.data import Proxy, Samples, load_samples
from distillation.ensemble import Ensemble
from distillation.export import write_atomically
from distillation.learner import TorchLearner, Training
from distillation.models import build_model
from distillation.runtime import device_named, generator
from simulations import fedavg
from simulations.engines.cohorts import there
from strategies.seeds import stream_seed

if TYPE_CHECKING:
    from simulations.engines.in_process import WorkerPool
    from simulations.prepared import Setup, View


def accuracy(learner: TorchLearner | Ensemble, test: Samples) -> float:
    """Share of test rows whose likeliest class is the true one."""
    assert test.labels is not None  # noqa: S101 - prepare_study always labels the test rows
    return float((learner.logits(test.features).argmax(axis=1) == test.labels.numpy()).mean())


def local_only(node: Node, rounds: int, test: Samples) -> float:
    """Test accuracy of a site that trains as often as in `rounds` rounds, with nobody's help.

    The same first weights, no teacher and no public labels; the same private batches in the same order where nothing is
    promised, and with as much noise on samples of its own where something is.
    """
    learner, training = node.fresh(), node.config.training
    if training.warmup_epochs:
        learner.fit(training.warmup_epochs, node.rng("warm-up", 0))
    for round_ in range(1, rounds + 1):
        if training.local_epochs:
            learner.fit(training.local_epochs, node.rng("fit", round_))
    return accuracy(learner, test)


def pooled(
    sites: Sequence[Path],
    proxy: Proxy,
    test: Samples,
    *,
    model: str,
    training: Training,
    epochs: int,
    seed: int,
    device: str,
) -> float:
    """Test accuracy of the student's model, trained on the labels of all private rows in one place.

    Args:
        sites: files of private samples.
        epochs: passes over all of them.
    """
    parts = [load_samples(path) for path in sites]
    everything = Samples(
        torch.cat([part.features for part in parts]),
        torch.cat([part.labels for part in parts if part.labels is not None]),
    )
    learner = TorchLearner(
        build_model(model, tuple(proxy.inputs.shape), len(proxy.classes), stream_seed(seed, "model", "student")),
        training,
        proxy.inputs,
        proxy.samples,
        everything,
        device_named(device),
    )
    learner.fit(epochs, generator(stream_seed(seed, "fit", "pooled")))
    return accuracy(learner, test)


def run_baselines(setup: Setup, pool: WorkerPool, view: View, training: Training) -> dict[str, Any]:
    """Baselines as configured, as run.json tells them; None for one that is not.

    Args:
        training: the clients'.

    Raises:
        WorkerError: one could not be trained.

    Guarantees:
        Each is kept beside the checkpoint with what it depends on: a resumed run trains none twice. fedavg.csv is
        there if and only if FedAvg is asked for.
    """
    wanted, rounds = setup.config.baselines, setup.federation.rounds
    keys = {
        "local_only": {"rounds": rounds},
        "pooled": {"epochs": wanted.pooled_epochs or rounds * setup.config.client.local_epochs},
        "fedavg": {
            "rounds": wanted.fedavg_rounds or rounds,
            "epochs": wanted.fedavg_epochs or setup.config.client.local_epochs,
        },
    }
    asked = [name for name in keys if getattr(wanted, name)]
    path = setup.out / "checkpoint" / "baselines.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def keep(found: Mapping[str, Any]) -> None:
        kept.update({name: {"key": keys[name], "found": value} for name, value in found.items()})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(kept).encode())

    missing = {name: keys[name] for name in asked if (kept.get(name) or {}).get("key") != keys[name]}
    if "local_only" in missing or "pooled" in missing:
        keep(_alone_and_pooled(setup, pool, view, training, missing))
    if "fedavg" in missing:
        averaged = _averaged(setup, pool, view, training, **missing["fedavg"])
        keep({"fedavg": [asdict(row) for row in averaged]})
    result = {name: kept[name]["found"] if name in asked else None for name in keys}
    if result["fedavg"] is None:
        (setup.out / "fedavg.csv").unlink(missing_ok=True)
        return result
    rows = [fedavg.FedAvgRound(**row) for row in result["fedavg"]]
    fedavg.write_rounds(setup.out / "fedavg.csv", rows)
    return {**result, "fedavg": fedavg.totals(rows)}


def _alone_and_pooled(
    setup: Setup, pool: WorkerPool, view: View, training: Training, missing: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """Every client alone and all rows in one place, as far as they are missing; side by side over the workers."""
    commands: list[dict[str, Any]] = []
    if "local_only" in missing:
        commands += [{"do": "local_only", "site": name, **missing["local_only"]} for name in setup.study.names]
    if "pooled" in missing:
        commands.append(
            {
                "do": "pooled",
                "model": setup.federation.student.model,
                "training": asdict(training),
                **missing["pooled"],
                "seed": setup.config.federation.seed,
                "device": setup.config.federation.device,
            }
        )
    local: dict[str, float] = {}
    found: dict[str, Any] = {}
    for done, (command, score) in enumerate(pool.tasks(commands), start=1):
        view.phase(f"baselines {done}/{len(commands)}")
        if command["do"] == "pooled":
            found["pooled"] = {"accuracy": score}
        else:
            local[command["site"]] = score
    if local:
        values = [local[name] for name in sorted(local)]
        found["local_only"] = {"accuracy_mean": float(np.mean(values)), "accuracy_min": min(values)}
    return found


def _averaged(
    setup: Setup, pool: WorkerPool, view: View, training: Training, rounds: int, epochs: int
) -> Iterator[fedavg.FedAvgRound]:
    """FedAvg with the student's model at every client, trained as the clients train."""
    study, federation = setup.study, setup.config.federation
    model, seed = setup.federation.student.model, federation.seed
    view.phase(f"FedAvg 0/{rounds}")
    for row, _ in fedavg.run_fedavg(
        pool,
        setup.sizes,
        fedavg.first_weights(model, study.shape, len(study.classes), seed),
        fedavg.Job(model, training, epochs, seed, federation.device),
        rounds=rounds,
        participation=federation.participation,
        there=lambda round_: there(setup.config, study.names, round_),
    ):
        view.phase(f"FedAvg {row.round}/{rounds}")
        yield row
