"""Who was in the training data: what the coordinator finds out from soft labels alone, with and without a promise.

    python simulations/benchmarks/membership.py [--write]

The table on which labels leak: scikit-learn's make_classification with 20 columns, 4 classes and a tenth of the labels
wrong; 500 private rows, 1,000 public ones, an MLP that trains for 60 epochs. Noise comes from seeds. Some minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import make_classification

from simulations.benchmarks.readme import machine, table, write_section
from simulations.config import ExperimentConfig, parse_config
from simulations.probes.audits import membership_of, subjects_in
from simulations.probes.membership import Found, Membership

SHADOWS = 16
EPSILON = 3.0
# What is done to labels before they are sent; none of it is privacy.
TREATMENTS = ("float32", "quantised:4", "temperature:5", "quantised:1", "top-k:1")
# AUC that distillation-LiRA must pass without a promise, and may not with one.
LEAKS, HOLDS = 0.7, 0.6
SIZES = {"private": 500, "proxy": 1000, "test": 100}


def study(folder: Path, epsilon: float) -> ExperimentConfig:
    """One site with half of the shadows' pool each time; `inf` promises nothing."""
    points, labels = make_classification(
        1600, 20, n_informative=10, n_redundant=0, n_classes=4, flip_y=0.1, random_state=0
    )
    frame = pd.DataFrame(points, columns=[f"x{index}" for index in range(points.shape[1])])
    frame["class"] = np.array(list("abcd"))[labels]
    frame.to_csv(folder / "rows.csv", index=False)
    told = {
        "federation": {"clients": 1, "rounds": 6, "rows_per_round": 1000, "workers": 1, "device": "cpu", "quorum": 1.0},
        "data": {"name": "csv", "path": "rows.csv", "target": "class", "partition": "iid", **SIZES},
        "strategy": {"preset": "mean"},
        "client": {"models": ["mlp"], "lr": 0.1, "batch_size": 50, "local_epochs": 10, "distil_epochs": 0},
        "student": {"model": "mlp"},
        "privacy": {"epsilon": epsilon if np.isfinite(epsilon) else "inf", "delta": 1e-5},
    }
    return parse_config(told, folder)


def measured(epsilon: float) -> Membership:
    """The attacks on the site with this promise."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with subjects_in(study(folder, epsilon), folder / "audit") as (subject,):
            return membership_of(
                subject,
                folder / "audit",
                shadows=SHADOWS,
                treatments=TREATMENTS,
                on_model=lambda done, total: print(f"epsilon {epsilon}: {done}/{total} models", end="\r", flush=True),
            )


def main() -> None:
    """Measure, print, and on request write the README's section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the README's section")
    arguments = parser.parse_args()
    plain, private = measured(float("inf")), measured(EPSILON)
    text = "\n\n".join((table(HEADING, list(_rows(plain, private))), _facts(plain, private)))
    print(text)
    if arguments.write:
        write_section("membership", text)


HEADING = (
    "what is seen",
    "attack",
    "no promise: AUC",
    "TPR at 1 % FPR",
    f"epsilon {EPSILON:g}: AUC",
    "TPR at 1 % FPR",
    "refutes epsilon below",
)


def _rows(plain: Membership, private: Membership) -> Iterable[list[str]]:
    known = {(each.seen, each.attack): each for each in private.found}
    for each in plain.found:
        other = known[each.seen, each.attack]
        seen = "the model itself" if each.seen == "model" else f"labels, `{each.seen}`"
        yield [seen, each.attack, *_scores(each), *_scores(other), f"{other.epsilon_low:.2f}"]


def _scores(found: Found) -> tuple[str, str]:
    return (
        f"{found.auc:.3f} ({found.auc_low:.3f} to {found.auc_high:.3f})",
        f"{found.tpr_1:.3f} ({found.tpr_1_low:.3f} to {found.tpr_1_high:.3f})",
    )


def _facts(plain: Membership, private: Membership) -> str:
    lira = [
        next(each.auc for each in one.found if each.seen == "float32" and each.attack == "lira")
        for one in (plain, private)
    ]
    strongest = max((one for one in private.found if one.seen != "model"), key=lambda one: one.auc)
    verdict = (
        "The promise is refuted by at least one attack: a bug."
        if private.refuted
        else "No threshold of any attack refutes the promise."
    )
    return (
        f"Distillation-LiRA, from full soft labels on public rows alone: AUC {lira[0]:.3f} without a promise (above "
        f"{LEAKS} is leaking), {lira[1]:.3f} at epsilon {EPSILON:g} (target: under {HOLDS}); of all "
        f"attacks on labels `{strongest.attack}` on `{strongest.seen}` is the strongest there, {strongest.auc:.3f}. "
        f"{verdict} {plain.shadows} attacked models of {plain.records // 2} rows each out of "
        f"{plain.records}; 95 % intervals; delta 1e-5, record, zero-out, DP-SGD with settings that were not tuned; "
        f"{machine()}."
    )


if __name__ == "__main__":
    main()
