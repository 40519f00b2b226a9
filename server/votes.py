"""The believed votes of a run, kept on disk, so that a client can be forgotten later."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from distillation.export import write_atomically
from strategies.aggregator import Ballot
from strategies.messages import ClientReport
from strategies.soft_labels import SoftLabels

_RECORD = "forgotten.json"


class VotesError(RuntimeError):
    """Kept votes that cannot be read, or are not all that were counted."""


@dataclass(frozen=True, slots=True)
class VoteStore:
    """One folder a round, one file a client, and the round's ballot; forgotten.json names who is left out for good.

    Attributes:
        folder: made when the first vote is kept.
    """

    folder: Path

    def keep(self, report: ClientReport, ballot: Ballot) -> None:
        """Write one believed report, safe from a power cut; its weight as it counted."""
        home = self.folder / f"round-{ballot.round:05}"
        if not (home / "ballot.safetensors").exists():
            home.mkdir(parents=True, exist_ok=True)
            told: dict[str, Any] = {
                "classes": ballot.classes,
                "clients": ballot.clients,
                "needed": ballot.needed,
                "seed": ballot.seed,
            }
            if ballot.heard is not None:
                told["heard"] = sorted(ballot.heard)
            data = save({"rows": torch.from_numpy(ballot.rows)}, {"ballot": json.dumps(told)})
            write_atomically(home / "ballot.safetensors", data, durable=True)
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
        path = home / f"client-{report.client}.safetensors"
        write_atomically(path, save(tensors, {"round": str(report.round)}), durable=True)

    def cut(self, done: int) -> None:
        """Remove what was kept of rounds after `done`: they were begun and not finished.

        Raises:
            VotesError: a folder is none of a round's.
        """
        for round_, home in self._homes():
            if round_ > done:
                shutil.rmtree(home)

    def rounds(self) -> Iterator[tuple[Ballot, list[ClientReport]]]:
        """Every kept round in order, its reports sorted by client.

        Raises:
            VotesError: a file is broken, or a folder is none of a round's.
        """
        for round_, home in self._homes():
            try:
                ballot = _ballot(home, round_)
                reports = [_report(path) for path in home.glob("client-*.safetensors")]
                for report in reports:
                    ballot.positions(report)  # refuses what does not answer this ballot
            except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
                raise VotesError(f"{home} is broken ({error!r}): restore it from a backup") from error
            yield ballot, sorted(reports, key=lambda report: report.client)

    def files_of(self, clients: Collection[str]) -> list[Path]:
        """Where votes of these clients are, those of unfinished rounds included."""
        found = (path for _, home in self._homes() for path in home.glob("client-*.safetensors"))
        return [path for path in found if client_of(path) in clients]

    def forgotten(self) -> dict[str, list[int]]:
        """Who is left out for good, with the rounds in which it had voted.

        Raises:
            VotesError: the record is broken.
        """
        path = self.folder / _RECORD
        try:
            told = json.loads(path.read_bytes())
            return {client: [int(round_) for round_ in rounds] for client, rounds in told.items()}
        except FileNotFoundError:
            return {}
        except (AttributeError, TypeError, ValueError, OSError) as error:
            raise VotesError(f"{path} is broken ({error!r}): restore it from a backup") from error

    def record(self, forgotten: Mapping[str, Collection[int]]) -> None:
        """Replace what forgotten() says."""
        told = {client: sorted(rounds) for client, rounds in sorted(forgotten.items())}
        write_atomically(self.folder / _RECORD, (json.dumps(told) + "\n").encode(), durable=True)

    def _homes(self) -> list[tuple[int, Path]]:
        """Every kept round and its folder, in order."""
        homes = []
        for home in self.folder.glob("round-*"):
            number = home.name.removeprefix("round-")
            if not (number.isdecimal() and int(number) > 0 and f"{int(number):05}" == number and home.is_dir()):
                raise VotesError(f"{home} is no folder of a round's votes: move it out of {self.folder}")
            homes.append((int(number), home))
        return sorted(homes)


def client_of(path: Path) -> str:
    """Whose votes a file holds."""
    return path.name.removeprefix("client-").removesuffix(".safetensors")


def _ballot(home: Path, round_: int) -> Ballot:
    with safe_open(home / "ballot.safetensors", framework="pt") as archive:
        told = json.loads((archive.metadata() or {})["ballot"])
        rows = archive.get_tensor("rows").numpy()
    heard = frozenset(told["heard"]) if "heard" in told else None
    return Ballot(rows, told["classes"], told["clients"], told["needed"], round_, told["seed"], heard)


def _report(path: Path) -> ClientReport:
    with safe_open(path, framework="pt") as archive:
        tensors = {key: archive.get_tensor(key).numpy() for key in archive.keys()}  # noqa: SIM118 - not a mapping
        round_ = int((archive.metadata() or {})["round"])
    weight = tensors["weight"]
    return ClientReport(
        client_of(path),
        round_,
        SoftLabels(tensors["rows"], tensors["log_probs"]),
        float(weight) if weight.ndim == 0 else weight,
        tensors.get("scores"),
        tensors.get("counts"),
    )
