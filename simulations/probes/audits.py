"""What `consilium audit` does on the sites of a study, or on a site's own file; each leaves a table in files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from distillation.export import write_atomically
from distillation.runtime import single_thread
from privacy.audit.label_inference import LabelInference, infer_labels
from simulations.config import ConfigError, ExperimentConfig
from simulations.prepared import read_config
from simulations.probes.commands import own_folder, study_in, write_csv
from simulations.probes.mechanisms import Audited, audit_mechanisms
from simulations.probes.membership import TREATMENTS, Membership, Student, audit_membership
from simulations.probes.one_run import OneRunFound, audit_one_run
from simulations.probes.shadows import SiteTraining, Subject, Train, Wanted, asked, trained
from simulations.reporting.audits_part import FOLDER as AUDITS
from simulations.reporting.report import write_report

# What each audit can show, and what it cannot: printed under its table.
SHOWS: dict[str, tuple[str, str]] = {
    "membership": (
        "who could have been found out by these attacks, from the model itself and from nothing but its soft labels on "
        "public rows",
        "that nobody else does better: other attacks, more shadows or a teacher that returns every round may find "
        "more. Rounding, temperature and top-1 are not privacy. A passed audit proves nothing",
    ),
    "one-run": (
        "that a training leaks more than it claims: no clipping, clipping of batches, noise divided by the batch size",
        "halved noise, noise used twice, batches that are not Poisson samples, or a ledger that forgets: those pass. "
        "A passed audit proves nothing",
    ),
    "labels": (
        "how well a site's class distribution can be read off its mean soft label on public rows",
        "how well a better attacker reads it. Record-level differential privacy does not protect it: it is a property "
        "of the whole site. A passed audit proves nothing",
    ),
    "mechanism": (
        "that a mechanism adds less noise than it claims: half of it, or that for one row of many",
        "10 % too little noise, or a sqrt(2) that was forgotten, unless runs is 100,000; noise that somebody else can "
        "compute; a sensitivity that other neighbours break. A passed audit proves nothing",
    ),
}


def config_of(run: Path) -> ExperimentConfig:
    """What a run's folder was run with.

    Raises:
        ConfigError: it holds no run of this version.
    """
    try:
        return read_config(run)
    except OSError:
        raise ConfigError(f"{run} holds no run: name a run's folder, or a study's file") from None


def shown_in_report(out: Path) -> Path | None:
    """Write the page of the run in whose folder an audit lies anew; None where there is no page to show it."""
    run = out.resolve().parent.parent
    if out.resolve().parent != run / AUDITS or not (run / "run.json").is_file():
        return None
    return write_report(run)


@contextmanager
def subjects_in(
    config: ExperimentConfig, out: Path, clients: Sequence[str] = (), wanted: Wanted | None = None
) -> Iterator[list[Subject]]:
    """The sites of a study, prepared in `out` for as long as they are audited; the largest first.

    Args:
        clients: only these, in this order.
        wanted: privacy instead of the configuration's own.

    Raises:
        ConfigError, DataError: what was asked for cannot be had; nothing is left behind.
    """
    with study_in(config, out) as setup:
        if unknown := [name for name in clients if name not in setup.site_files]:
            raise ConfigError(f"no client is called {unknown[0]!r}: the names are {', '.join(setup.study.names)}")
        names = clients or sorted(setup.sizes, key=lambda name: -setup.sizes[name])
        yield [Subject.open(setup.site_files[name], config.federation.rounds, wanted) for name in names]


@contextmanager
def site_in(site: Path, out: Path, rounds: int = 0, wanted: Wanted | None = None) -> Iterator[list[Subject]]:
    """One site by its own file; its state and its ledger are neither read nor written.

    Args:
        rounds: 0 = those that its budget is for; without a promise 20.
        wanted: privacy instead of its own.

    Raises:
        ConfigError, SiteConfigError, DataError: a folder, a file or data that cannot be used; nothing is left behind.
    """
    with own_folder(out):
        yield [Subject.open(site, rounds, wanted)]


def membership_of(
    subject: Subject,
    out: Path,
    *,
    shadows: int = 16,
    treatments: Sequence[str] = TREATMENTS,
    student: Student | None = None,
    seed: int = 1,
    on_model: Callable[[int, int], None] = lambda done, total: None,
) -> Membership:
    """Membership attacks on one site; writes membership.csv, membership.json and membership.svg.

    Raises:
        ConfigError, DataError: as audit_membership.
    """
    from simulations.probes.roc_figure import write_roc

    single_thread()
    found = audit_membership(
        subject,
        _training(subject, seed),
        shadows=shadows,
        treatments=treatments,
        student=student,
        seed=seed,
        on_model=on_model,
    )
    write_csv(out / "membership.csv", [each.row() for each in found.found])
    _write_json(out / "membership.json", "membership", {**found.as_json(), **_wanted(subject)})
    write_roc(out / "membership.svg", found)
    return found


def one_run_of(subject: Subject, out: Path, *, count: int = 500, guesses: int = 100, seed: int = 1) -> OneRunFound:
    """A one-run audit of a site's training; writes one-run.csv and one-run.json.

    Raises:
        ConfigError: as audit_one_run.
    """
    single_thread()
    found = audit_one_run(subject, _training(subject, seed), count=count, guesses=guesses, seed=seed)
    write_csv(out / "one-run.csv", [found.row()])
    _write_json(out / "one-run.json", "one-run", {**found.as_json(), **_wanted(subject)})
    return found


def labels_of(
    subjects: Sequence[Subject],
    out: Path,
    *,
    seed: int = 1,
    on_model: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, LabelInference]:
    """Label-distribution inference against each site; writes labels.csv and labels.json.

    Raises:
        ConfigError: training that diverged.
    """
    single_thread()
    found: dict[str, LabelInference] = {}
    for done, subject in enumerate(subjects, start=1):
        name, records = subject.config.site, len(subject.private)
        learner = trained(subject, subject.private, _training(subject, seed), seed, name)
        votes = asked(subject, learner, records, seed, name)
        public = subject.proxy.samples.labels
        counts = np.bincount(subject.labels.numpy(), minlength=len(subject.proxy.classes)).astype(np.int64)
        found[name] = infer_labels(
            votes.probabilities(), counts, None if public is None else public.numpy()[votes.rows]
        )
        on_model(done, len(subjects))
    classes = subjects[0].proxy.classes
    write_csv(out / "labels.csv", [row for name, each in found.items() for row in _class_rows(name, each, classes)])
    told = {name: {**asdict(each), "found": _number(each.found)} for name, each in found.items()}
    _write_json(out / "labels.json", "labels", {"classes": list(classes), "sites": told, **_wanted(subjects[0])})
    return found


def mechanisms_of(
    out: Path,
    names: Sequence[str] = (),
    runs: int = 1000,
    *,
    seed: int = 1,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> list[Audited]:
    """The noise of mechanisms on made-up neighbours; writes mechanism.csv and mechanism.json into `out`.

    Raises:
        ConfigError: a mechanism that there is not, too few runs, or a folder that cannot be had.
    """
    single_thread()
    with own_folder(out):
        found = audit_mechanisms(names, runs, seed, on_case=on_case)
        write_csv(out / "mechanism.csv", [each.row() for each in found])
        _write_json(out / "mechanism.json", "mechanism", {"mechanisms": [each.row() for each in found]}, private=False)
    return found


def _class_rows(site: str, found: LabelInference, classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    for name, truth, guess in zip(classes, found.truth, found.guess, strict=True):
        yield {
            "site": site,
            "class": name,
            "truth": truth,
            "guess": guess,
            "kl_nats": found.kl_nats,
            "uniform_kl_nats": found.uniform_kl_nats,
        }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _wanted(subject: Subject) -> dict[str, Any]:
    return {"wanted": None if subject.wanted is None else asdict(subject.wanted)}


def _training(subject: Subject, seed: int) -> Train:
    return SiteTraining(subject.config.training, subject.rounds, seed)


def _write_json(path: Path, kind: str, told: Mapping[str, Any], *, private: bool = True) -> None:
    """Results with what they mean; those that were computed from private rows must not leave either."""
    can, cannot = SHOWS[kind]
    plain = {**told, "can_show": can, "cannot_show": cannot, "about_private_rows": private}
    write_atomically(path, (json.dumps(plain, indent=1) + "\n").encode())
