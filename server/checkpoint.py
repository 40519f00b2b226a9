"""Where a run stands, as one file that is replaced as a whole after every round."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from distillation.export import write_atomically
from server.checks import Failure
from server.config import FederationConfig
from server.standing import Standing

_SCHEMA = 3
Tensor = TypeVar("Tensor")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be resumed from."""


@dataclass(frozen=True, slots=True)
class RoundMetrics:
    """One row of metrics.csv; accuracies in [0, 1], None where nobody evaluated.

    `replies` counts usable answers, `late` those of them that answer an earlier round; `rejected` counts answers that
    came and were not usable; who sent nothing at all is in neither. `rows` is how many rows the teacher has.
    """

    round: int
    student_accuracy: float | None
    teacher_accuracy: float | None
    client_accuracy_mean: float | None
    client_accuracy_min: float | None
    replies: int
    late: int
    rejected: int
    rows: int
    upload_bytes: int
    download_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Judged:
    """A student of some round and its held-out scores."""

    round: int
    accuracy: float
    macro_f1: float


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """Everything that a resumed run needs beside the sites' own states.

    Attributes:
        rounds: rows so far; their number is the number of finished rounds.
        failures: (round, failure) so far.
        standing: what the last round left to the next; None before the first.
        student: what TorchLearner.state() returned after it.
        last, best: the last and the best judged student; both are saved after the checkpoint, and again on resume.
            None where there are no test rows.
    """

    rounds: tuple[RoundMetrics, ...] = ()
    failures: tuple[tuple[int, Failure], ...] = ()
    standing: Standing | None = None
    student: Mapping[str, torch.Tensor] = field(default_factory=dict)
    last: Judged | None = None
    best: Judged | None = None


def fingerprint(config: FederationConfig) -> str:
    """Identity of what a checkpoint belongs to: everything that a round's result depends on, paths left out."""
    left_out = dict.fromkeys(("rounds", "proxy", "test", "timeout_s"), True)
    told = config.model_dump(mode="json", exclude={**left_out, "client_sum": {"ledger"}})
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def save_progress(path: Path, config: FederationConfig, progress: Progress) -> None:
    """Replace the checkpoint.

    Raises:
        OSError: the disk refuses; the checkpoint before is whole.
    """
    tensors = {f"student.{key}": value for key, value in progress.student.items()}
    if progress.standing is not None:
        # Copies: a teacher and its choices may share their rows, and safetensors refuses shared memory.
        arrays = {key: np.array(value, order="C") for key, value in progress.standing.arrays().items()}
        tensors |= {f"standing.{key}": torch.from_numpy(value) for key, value in arrays.items()}
    told = {
        "schema": _SCHEMA,
        "fingerprint": fingerprint(config),
        "rounds": [asdict(row) for row in progress.rounds],
        "failures": [[round_, asdict(failure)] for round_, failure in progress.failures],
        "last": asdict(progress.last) if progress.last else None,
        "best": asdict(progress.best) if progress.best else None,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(tensors, {"progress": json.dumps(told, allow_nan=False)}), durable=True)


def refuse_lost(out: Path) -> None:
    """For whoever resumes: a run without a checkpoint was never begun, or has lost it.

    Raises:
        CheckpointError: metrics.csv has finished rounds, and there is no checkpoint.
    """
    checkpoint, metrics = out / "checkpoint" / "server.safetensors", out / "metrics.csv"
    if not checkpoint.exists() and metrics.is_file() and metrics.read_bytes().count(b"\n") > 1:
        raise CheckpointError(
            f"{checkpoint} is gone, and {metrics} has finished rounds: restore the folder from a backup, or start anew "
            "in another one"
        )


def load_progress(path: Path, config: FederationConfig) -> Progress:
    """The progress stored at `path`, none at all where there is no file.

    Raises:
        CheckpointError: a broken file, or one of another configuration.
    """
    if not path.exists():
        return Progress()
    try:
        with safe_open(path, framework="pt") as archive:
            told: dict[str, Any] = json.loads((archive.metadata() or {})["progress"])
            tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118 - not a mapping
        if told["schema"] != _SCHEMA:
            raise CheckpointError(f"{path} has schema {told['schema']}; this version reads {_SCHEMA}")
        if told["fingerprint"] != fingerprint(config):
            raise CheckpointError(
                f"{path} belongs to another configuration or to other data: resume with those it was begun with "
                "(only how many rounds, and how they are run, may change), or name another --out"
            )
        return Progress(
            tuple(RoundMetrics(**row) for row in told["rounds"]),
            tuple((round_, Failure(**failure)) for round_, failure in told["failures"]),
            _standing(tensors, config) if told["rounds"] else None,
            _under("student.", tensors),
            Judged(**told["last"]) if told["last"] else None,
            Judged(**told["best"]) if told["best"] else None,
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is broken ({error!r}): delete the run's folder and start anew") from error


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _standing(tensors: Mapping[str, torch.Tensor], config: FederationConfig) -> Standing:
    return Standing.of_arrays(
        {key: value.numpy() for key, value in _under("standing.", tensors).items()}, config.exchange
    )
