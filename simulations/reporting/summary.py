"""run.json: what a run came to, from its checkpoint; the keys are promised in the README."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np

from distillation.data import load_proxy, load_samples
from distillation.models import build_model, parameter_count
from server.checkpoint import Progress, RoundMetrics
from server.student_job import build_student, predicted
from simulations.engines.cohorts import late_of, liars_of, newcomers_of, there
from simulations.prepared import RunFailed, Setup
from simulations.promises import ledger_of, statements_of
from strategies.selection import participants


def summary(
    setup: Setup,
    progress: Progress,
    baselines: Mapping[str, Any],
    each: Mapping[str, float],
    failed: RunFailed | None,
    seconds: float,
) -> dict[str, Any]:
    """run.json; its keys are promised in the README."""
    study, config = setup.study, setup.config
    rows, last = progress.rounds, progress.rounds[-1] if progress.rounds else None
    failures = (*progress.failures, *(failed.failures if failed else ()))
    verdict = "failed" if failed else "degraded" if failures else "ok"
    parameters = {
        name: parameter_count(build_model(name, tuple(study.shape), len(study.classes), seed=0))
        for name in {*setup.models.values(), setup.federation.student.model}
    }
    return {
        "schema": 1,
        "verdict": verdict,
        "reason": str(failed) if failed else None,
        "refused": bool(failed and failed.refused),
        "config": config.resolved(),
        "engine": config.federation.engine,
        "seed": config.federation.seed,
        "versions": versions(),
        "proxy_sha256": study.proxy_sha256,
        "classes": list(study.classes),
        "subject": setup.federation.exchange.subject,
        "attackers": liars_of(config, study.names),
        "stragglers": late_of(config, study.names),
        "newcomers": newcomers_of(config, study.names),
        "rounds_done": len(rows),
        "student": _student_summary(setup, progress, parameters),
        "teacher": _teacher_summary(progress),
        "clients": {
            "accuracy_mean": float(np.mean([each[name] for name in sorted(each)])) if each else None,
            "accuracy_min": min(each.values()) if each else None,
            "each": [
                {
                    "client": name,
                    "model": setup.models[name],
                    "parameters": parameters[setup.models[name]],
                    "rows": int(study.sizes[index]),
                    "class_counts": [int(count) for count in study.class_counts[index]],
                    "accuracy": each.get(name),
                }
                for index, name in enumerate(study.names)
            ],
        },
        "local_only": baselines.get("local_only"),
        "pooled": baselines.get("pooled"),
        "fedavg": baselines.get("fedavg"),
        "privacy": statements_of(
            config, {name: ledger_of(config, name, state) for name, state in setup.states.items()}
        ),
        "failures": [{"round": round_, **asdict(failure)} for round_, failure in failures],
        "upload_bytes": sum(row.upload_bytes for row in rows),
        "download_bytes": sum(row.download_bytes for row in rows),
        "weights_bytes": _weights_bytes(setup, rows, parameters),
        "seconds": round(seconds, 3),
        "confusion": _confusion(setup, progress),
        "last_round": asdict(last) if last else None,
    }


def _student_summary(setup: Setup, progress: Progress, parameters: Mapping[str, int]) -> dict[str, Any]:
    """All None where class tables are exchanged, which teach no student."""
    model = setup.federation.student.model if setup.federation.has_student else None
    last = progress.last
    return {
        "model": model,
        "parameters": None if model is None else parameters[model],
        "accuracy": last.accuracy if last else None,
        "macro_f1": last.macro_f1 if last else None,
        "best": asdict(progress.best) if progress.best else None,
    }


def _teacher_summary(progress: Progress) -> dict[str, Any]:
    teacher = progress.standing.teacher if progress.standing else None
    if teacher is None:
        return {"accuracy": None, "entropy_nats": None, "sha256": None}
    probabilities = teacher.probabilities()
    digest = hashlib.sha256(teacher.rows.tobytes() + teacher.log_probs.tobytes())
    return {
        "accuracy": progress.rounds[-1].teacher_accuracy,
        "entropy_nats": float(-(probabilities * teacher.log_probs).sum(axis=1).mean()),
        "sha256": digest.hexdigest(),
    }


def _weights_bytes(setup: Setup, rows: tuple[RoundMetrics, ...], parameters: Mapping[str, int]) -> int:
    """What sending float32 weights down and up would have cost the same clients in the same rounds."""
    exchange = setup.federation.exchange
    return sum(
        2 * 4 * parameters[setup.models[name]]
        for row in rows
        for name in participants(
            exchange.seed, row.round, there(setup.config, setup.study.names, row.round), exchange.participation
        )
    )


def _confusion(setup: Setup, progress: Progress) -> list[list[int]] | None:
    """Test rows by (true class, class that the last student says)."""
    test = load_samples(setup.study.test)
    if not progress.student or progress.last is None or test.labels is None:
        return None
    student = build_student(setup.federation, load_proxy(setup.study.proxy, verify=False))
    student.restore(progress.student)
    counts = np.zeros((len(setup.study.classes),) * 2, np.int64)
    np.add.at(counts, (test.labels.numpy(), predicted(student, test)), 1)
    return [[int(count) for count in row] for row in counts]


def versions() -> dict[str, str]:
    """Versions that a repetition should match."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("consilium", "flwr", "numpy", "torch")},
    }
