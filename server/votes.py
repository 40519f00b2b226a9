"""The believed votes of a run, kept on disk, so that a client can be forgotten later."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from distillation.export import write_atomically
from strategies.aggregator import Ballot
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels


class VotesError(RuntimeError):
    """Kept votes that cannot be read."""


@dataclass(frozen=True, slots=True)
class VoteStore:
    """One folder a round, one file a client, and the round's ballot.

    Attributes:
        folder: made when the first vote is kept.
    """

    folder: Path

    def keep(self, report: ClientReport, ballot: Ballot) -> None:
        """Write one believed report; its weight as it counted."""
        home = self.folder / f"round-{ballot.round:05}"
        if not (home / "ballot.safetensors").exists():
            home.mkdir(parents=True, exist_ok=True)
            told = {"classes": ballot.classes, "clients": ballot.clients, "needed": ballot.needed, "seed": ballot.seed}
            data = save({"rows": torch.from_numpy(ballot.rows)}, {"ballot": json.dumps(told)})
            write_atomically(home / "ballot.safetensors", data)
        votes = report.soft_labels
        tensors = {
            "rows": torch.from_numpy(votes.rows),
            "log_probs": torch.from_numpy(votes.log_probs),
            "weight": torch.as_tensor(report.weight, dtype=torch.float64),
        }
        for name, extra in (("scores", report.scores), ("counts", report.counts)):
            if extra is not None:
                tensors[name] = torch.from_numpy(extra)
        # The prefix keeps a client called "ballot" apart.
        write_atomically(home / f"client-{report.client}.safetensors", save(tensors, {"round": str(report.round)}))

    def cut(self, done: int) -> None:
        """Remove what was kept of rounds after `done`: they were begun and not finished."""
        for home in self.folder.glob("round-*"):
            if _round_of(home) > done:
                shutil.rmtree(home)

    def rounds(self) -> Iterator[tuple[Ballot, list[ClientReport]]]:
        """Every kept round in order, its reports sorted by client.

        Raises:
            VotesError: a file is broken.
        """
        for round_, home in sorted((_round_of(home), home) for home in self.folder.glob("round-*")):
            try:
                reports = [_report(path) for path in home.glob("client-*.safetensors")]
                yield _ballot(home, round_), sorted(reports, key=lambda report: report.client)
            except (SafetensorError, KeyError, ValueError, OSError) as error:
                raise VotesError(f"{home} is broken ({error!r}): restore it from a backup") from error


def _round_of(home: Path) -> int:
    return int(home.name.removeprefix("round-"))


def _ballot(home: Path, round_: int) -> Ballot:
    with safe_open(home / "ballot.safetensors", framework="pt") as archive:
        told = json.loads((archive.metadata() or {})["ballot"])
        rows = archive.get_tensor("rows").numpy()
    return Ballot(rows, told["classes"], told["clients"], told["needed"], round_, told["seed"])


def _report(path: Path) -> ClientReport:
    with safe_open(path, framework="pt") as archive:
        tensors = {key: archive.get_tensor(key).numpy() for key in archive.keys()}  # noqa: SIM118 - not a mapping
        round_ = int((archive.metadata() or {})["round"])
    weight = tensors["weight"]
    return ClientReport(
        path.name.removeprefix("client-").removesuffix(".safetensors"),
        round_,
        SoftLabels(tensors["rows"], tensors["log_probs"]),
        float(weight) if weight.ndim == 0 else weight,
        tensors.get("scores"),
        tensors.get("counts"),
    )
