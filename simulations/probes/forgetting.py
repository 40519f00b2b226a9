"""`consilium forget`: a finished run without some clients' votes, as a student and files beside it."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from distillation.data import load_proxy, load_samples
from distillation.export import write_atomically
from server.forget import Counted, Forgotten, forget, without
from server.votes import VotesError, VoteStore, client_of
from simulations.config import ConfigError, ExperimentConfig
from simulations.prepared import alone, read_config
from simulations.probes.commands import study_in, write_csv
from strategies.selection import count_of


def forget_in(run: Path, clients: Sequence[str], out: Path, *, delete_votes: bool = False) -> dict[str, Any]:
    """A finished run without some clients' votes; writes forget.json, metrics.csv and the student into `out`.

    The run's votes/forgotten.json then names the clients: every later call leaves them out, too.

    Args:
        delete_votes: remove their vote files, those of earlier calls' clients included, once the student is written.

    Raises:
        ConfigError: no finished run, none of its clients, other data than it had, or a folder is in use.
        VotesError: the run kept no votes, not all of them, none of a client, or what is left teaches nothing.
    """
    if not (run / "config.json").is_file():
        raise ConfigError(f"{run} holds no run: name the folder of results of `consilium run`")
    config, finished = read_config(run), _finished(run)
    for client in clients:
        if client not in finished.clients:
            raise ConfigError(f"no client is called {client!r}: the names are {', '.join(finished.clients)}")
    if not (run / "votes").is_dir():
        raise VotesError(f"{run} kept no votes: run it with --set federation.keep_votes=true")
    votes = VoteStore(run / "votes")
    with alone(run):
        left = without(votes, clients, _counted(run / "metrics.csv", finished.rounds))
        with study_in(config, out) as setup:
            if setup.study.proxy_sha256 != finished.proxy_sha256:
                raise ConfigError(f"the data is no longer that of {run}: put the files back that it was run with")
            proxy, test = load_proxy(setup.study.proxy, verify=False), load_samples(setup.study.test)
            rows = forget(setup.federation, left, proxy, test, out)
            write_csv(out / "metrics.csv", [asdict(row) for row in rows])
            votes.record(left.gone)  # first: of a recorded client no file is missed
            if delete_votes:
                for path in votes.files_of(left.gone):
                    path.unlink()
            exact = _is_exact(config, rows)
            forgotten = {
                "clients": list(left.gone),
                "rounds": len(rows),
                "student_accuracy_before": finished.accuracy,
                "student_accuracy": rows[-1].student_accuracy,
                "exact": exact,
                "statement": _statement(", ".join(left.gone), exact),
                "remains": _remains(run, votes, list(left.gone)),
            }
            write_atomically(out / "forget.json", (json.dumps(forgotten, indent=1) + "\n").encode())
    return forgotten


def _statement(names: str, exact: bool) -> str:
    if exact:
        return f"This equals a run in which {names} had never answered."
    return (
        f"No vote of {names} is in this student. What the others voted and were asked may still depend on {names}: "
        f"to remove that, too, the federation must be run again without {names}."
    )


def _remains(run: Path, votes: VoteStore, clients: Sequence[str]) -> str:
    """What of the forgotten clients is still in the run's folder."""
    held = sorted({client_of(path) for path in votes.files_of(clients)})
    kept = f"still holds the votes of {', '.join(held)}" if held else f"holds no vote of {', '.join(clients)} any more"
    way_out = "; forgetting again into another --out with --delete-votes removes them" if held else ""
    return f"{votes.folder} {kept}{way_out}. The run's own student and checkpoint in {run} are as they were."


class _Finished(NamedTuple):
    """What forgetting needs of run.json."""

    clients: tuple[str, ...]
    proxy_sha256: str
    rounds: int
    accuracy: float | None


def _finished(run: Path) -> _Finished:
    """What a run came to.

    Raises:
        ConfigError: it has not ended, or finished no round, or its run.json is broken.
    """
    try:
        told = json.loads((run / "run.json").read_bytes())
        names = tuple(str(each["client"]) for each in told["clients"]["each"])
        rounds, accuracy = int(told["rounds_done"]), told["student"]["accuracy"]
        finished = _Finished(names, told["proxy_sha256"], rounds, None if accuracy is None else float(accuracy))
    except FileNotFoundError:
        raise ConfigError(f"{run} is not finished: go on with it by consilium run ... --out {run} --resume") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{run / 'run.json'} is broken: name another folder of results") from None
    if rounds < 1:
        raise ConfigError(f"{run} has finished {rounds} rounds and 1 is needed: go on with it by --resume")
    return finished


def _counted(path: Path, rounds: int) -> list[Counted]:
    """The answers that counted in each of the finished rounds.

    Raises:
        ConfigError: metrics.csv is not there, broken, or has other rounds.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        numbers = [int(row["round"]) for row in rows]
        counted = [Counted(int(row["replies"]), int(row["late"])) for row in rows]
    except FileNotFoundError:
        raise ConfigError(f"{path} is not there and says how many votes counted: restore it from a backup") from None
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is broken ({error!r}): restore it from a backup") from None
    if numbers != list(range(1, rounds + 1)):
        raise ConfigError(f"{path} must hold rounds 1 to {rounds} and holds {numbers}: restore it from a backup")
    return counted


def _is_exact(config: ExperimentConfig, rows: Sequence[Forgotten]) -> bool:
    """Whether nothing that is left depends on the forgotten clients: neither votes, nor what was asked, nor the quorum.

    Never for late votes: who is late changes what is on the ballot.
    """
    federation, strategy = config.federation, config.strategy
    return (
        (config.client.distil_epochs == 0 or len(rows) == 1)
        and federation.mode == "sync"
        and strategy.choice != "disagreement"
        and all(row.same_rows for row in rows)
        and config.attack is None
        and all(row.votes >= max(1, count_of(federation.quorum, row.asked)) for row in rows)
    )
