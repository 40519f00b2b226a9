"""`consilium budget`: what the records of a data set have paid, what is left, and what a plan would cost."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from click import Context
from rich import box
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from consilium.display import print_next
from consilium.exits import Format, exit_codes, print_json
from consilium.options import Reporting

if TYPE_CHECKING:
    from privacy.ledger import Ledger


class _ShowByDefault(TyperGroup):
    """`consilium budget runs/mine` is `consilium budget show runs/mine`, with options before the path as well."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["show", *args]
        return super().parse_args(ctx, args)


budget_app = typer.Typer(
    help="What private records have paid so far, what is left, and what a plan would cost.",
    no_args_is_help=True,
    cls=_ShowByDefault,
)


@budget_app.command("show")
def show(
    where: Annotated[Path, typer.Argument(help="A ledger (.sqlite), a site.toml, or a run's folder.")],
    reporting: Reporting = Format.text,
) -> None:
    """Spent and left, per run and in all; every row of the ledger is checked first."""
    with exit_codes(reporting):
        told = {str(path): _told(path) for path in ledgers_in(where)}
        if reporting is Format.json:
            print_json("ok", 0, told)
            return
        console = Console()
        for path, one in told.items():
            _print_ledger(console, path, one)
        print_next(console, shlex.join(["consilium", "budget", "plan", "--help"]))


def ledgers_in(where: Path) -> list[Path]:
    """The ledgers that a path stands for.

    Raises:
        ConfigError: it stands for none.
    """
    from simulations.config import ConfigError

    if where.is_dir():
        found = _of_run(where) if (where / "config.json").is_file() else sorted(where.glob("*.sqlite"))
    elif where.suffix == ".toml" and where.is_file():
        found = _of_site(where)
    else:
        found = [where] if _is_sqlite(where) else []
    if not found:
        raise ConfigError(
            f"{where} holds no privacy ledger: name a .sqlite file, a site.toml with [privacy] that has answered, or "
            "the folder of a private run"
        )
    return found


def _of_run(out: Path) -> list[Path]:
    """The ledgers that a run was paid from, the coordinator's own and those that outlive the run among them."""
    from simulations.prepared import read_config
    from simulations.promises import ledger_of

    config, sites = read_config(out), out / "checkpoint" / "sites"
    names = sorted(path.name for path in sites.glob("*")) or [""]  # the coordinator's is there before any site's
    found = {ledger_of(config, name, sites / name): None for name in names}
    return [path for path in found if path.is_file()]


def _of_site(where: Path) -> list[Path]:
    import tomllib

    from client.config import load_site
    from simulations.config import ConfigError

    told: dict[str, Any] = {"site": ""}
    with suppress(ValueError):  # no TOML at all: load_site says so
        told = tomllib.loads(where.read_bytes().decode("utf-8-sig"))
    if "site" not in told:
        raise ConfigError(f"{where} is no site's file, as it names no `site`: of a study, name the folder of its run")
    privacy = load_site(where).privacy
    path = None if privacy is None else where.parent / privacy.ledger
    return [] if path is None or not path.is_file() else [path]


def _is_sqlite(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def _told(path: Path) -> dict[str, Any]:
    from privacy.ledger import Ledger

    with Ledger.open(path) as ledger:
        ledger.verify()
        return _ledger(ledger)


def _ledger(ledger: Ledger) -> dict[str, Any]:
    from privacy.accounting import round_up

    terms, head = ledger.terms, ledger.head()
    charged, delta = ledger.charged()
    releases = [row.body for row in ledger.rows() if row.kind == "SPENT" and "request" in row.body]
    runs = sorted({body["request"]["run"] for body in releases})
    last = ledger.events(runs[-1]) if runs else ()
    return {
        "data_set": ledger.data_set,
        "parent": ledger.lineage[1] if len(ledger.lineage) > 1 else None,
        "child": ledger.child or None,
        "unpaid_before": ledger.unpaid_before,
        "mode": terms.mode,
        "unit": terms.unit,
        "group_size": terms.group_size,
        "adjacency": terms.adjacency,
        "seeded": terms.seeded,
        "epsilon_total": terms.epsilon,
        "delta_total": terms.delta,
        "epsilon_charged": None if math.isinf(charged) else round_up(charged),
        "delta_charged": delta,
        "epsilon_of_releases": None if terms.mode == "count" else round_up(ledger.epsilon()),
        "answers": ledger.count(),
        "answers_left": _answers_left(ledger, releases),
        "runs": {run: {"answers": ledger.count(run), "events": _plain(ledger.events(run))} for run in runs},
        "last_run_events": _plain(last),
        "ledger_seq": head.seq,
        "ledger_head": head.digest.hex(),
    }


def _answers_left(ledger: Ledger, releases: Sequence[Mapping[str, Any]]) -> int | None:
    """More answers like the last one."""
    from privacy.events import from_json

    if not releases:
        return None
    return ledger.left(from_json(releases[-1]["events"]))


def _plain(events: Any) -> list[list[Any]]:
    """Events with their numbers readable."""
    from dataclasses import asdict

    return [
        [event.KIND, {key: value for key, value in asdict(event).items() if key != "count"}, event.count]
        for event in events
    ]


def _print_ledger(console: Console, path: str, told: dict[str, Any]) -> None:
    console.print(path, style="bold", highlight=False, markup=False, soft_wrap=True)
    if told["seeded"]:
        console.print("  SIMULATION, NOT PRIVATE: its noise can be computed again", style="bold red")
    _print_relations(console, told)
    if told["mode"] == "count":
        console.print(f"  {told['answers']} answers, none of them accounted for", highlight=False)
        return
    from privacy.statement import shown, shown_delta

    unit = told["unit"] if told["group_size"] == 1 else f"any {told['group_size']} records together"
    promise = f"{unit}, {told['adjacency'].replace('_', '-')}, composed by {told['mode']}"
    total = f"epsilon {shown(told['epsilon_total'])} at delta {shown_delta(told['delta_total'])}"
    charged = f"epsilon {shown(told['epsilon_charged'])} at delta {shown_delta(told['delta_charged'])}"
    console.print(f"  total    {total}; {promise}", highlight=False, soft_wrap=True)
    drawn = f"{shown(told['epsilon_of_releases'])} drawn so far, which is no promise"
    refunds = f"for good: stopping early refunds nothing ({drawn})"
    console.print(f"  charged  {charged}, {refunds}", highlight=False, soft_wrap=True)
    left = told["answers_left"]
    more = "none was given yet" if left is None else f"{left} more like the last one"
    console.print(f"  answers  {told['answers']}; {more}", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("run", "answers", "paid"):
        table.add_column(heading, justify="right" if heading == "answers" else "left")
    for run, one in told["runs"].items():
        table.add_row(run, str(one["answers"]), "; ".join(map(_event_text, one["events"])))
    console.print(table)
    console.print(f"  ledger {told['ledger_seq']}:{told['ledger_head'][:16]}, every row checked\n", highlight=False)


def _print_relations(console: Console, told: dict[str, Any]) -> None:
    """What this ledger goes on from, what goes on from it, and what no ledger has paid for."""
    if told["unpaid_before"]:
        unpaid = f"{told['unpaid_before']} answers went before the first ledger of these records: nothing covers them"
        console.print(f"  unpaid   {unpaid}", style="bold red", highlight=False, soft_wrap=True)
    if told["parent"]:
        parent = f"data set {told['parent']}: what it has spent is in here"
        console.print(f"  parent   {parent}", highlight=False, soft_wrap=True)
    if told["child"]:
        child = f"data set {told['child']} goes on from here; this ledger answers no more"
        console.print(f"  child    {child}", style="bold", highlight=False, soft_wrap=True)


def _event_text(event: list[Any]) -> str:
    kind, parameters, count = event
    return f"{count} x {kind}(" + ", ".join(f"{key}={value:.6g}" for key, value in parameters.items()) + ")"


@budget_app.command("plan")
def plan(
    records: Annotated[
        int, typer.Option(help="Private rows of the site, of the smallest if there are several; public.", min=1)
    ],
    epochs: Annotated[int, typer.Option(help="Passes over the private rows before each answer.", min=1)] = 1,
    batch_size: Annotated[int, typer.Option(help="Rows that a step expects; 0: 256, or all if fewer.", min=0)] = 0,
    rounds: Annotated[int, typer.Option(help="Answers; 0: as many as epsilon pays for at --noise.", min=0)] = 0,
    noise: Annotated[float, typer.Option(help="Noise multiplier; 0: the least that keeps epsilon for --rounds.")] = 0.0,
    epsilon: Annotated[float, typer.Option(help="Budget; 0: what --rounds at --noise cost.")] = 0.0,
    delta: Annotated[float, typer.Option(help="0: min(1e-5, 1/(10 records)).")] = 0.0,
    group_size: Annotated[int, typer.Option(help="Rows that epsilon covers together: a patient's.", min=1)] = 1,
    warmup_epochs: Annotated[int, typer.Option(help="Passes more before a run's first answer.", min=0)] = 0,
    restart: Annotated[bool, typer.Option(help="Every answer from the first weights, warm-up included.")] = False,
    reporting: Reporting = Format.text,
) -> None:
    """DP-SGD: how many rounds at this noise, what noise for these rounds, or what both cost. Give two of the three."""
    with exit_codes(reporting):
        training = Passes(epochs, warmup_epochs, restart)
        told = planned(records, training, batch_size, rounds, noise, epsilon, delta, group_size)
        if reporting is Format.json:
            print_json("ok", 0, told)
            return
        console = Console()
        for key, value in told.items():
            text = f"{value:.6g}" if isinstance(value, float) else str(value)
            console.print(f"{key:<16} {text}", highlight=False)
        flags = [word for setting in _settings(told, training, epsilon) for word in ("--set", setting)]
        print_next(console, shlex.join(["consilium", "run", "config.toml", *flags]))


@dataclass(frozen=True, slots=True)
class Passes:
    """How often a site goes over its private rows.

    Attributes:
        each: before every answer.
        warmup: more before a run's first one.
        restart: whether every answer is a first one.
    """

    each: int
    warmup: int = 0
    restart: bool = False


def _settings(told: Mapping[str, Any], training: Passes, epsilon: float) -> list[str]:
    """Everything of an experiment that a plan's price depends on; the mechanism before its own settings."""
    return [
        "privacy.mechanism=dp-sgd",
        f"privacy.mechanism.batch_size={told['batch_size']}",
        f"privacy.noise_multiplier={told['noise_multiplier']!r}",
        f"privacy.epsilon={epsilon or told['epsilon']!r}",
        f"privacy.delta={told['delta']!r}",
        f"privacy.group_size={told['group_size']}",
        "privacy.composition=plan",
        f"client.local_epochs={training.each}",
        f"client.warmup_epochs={training.warmup}",
        f"client.restart={str(training.restart).lower()}",
        f"federation.rounds={told['rounds']}",
    ]


def planned(
    records: int,
    training: Passes,
    batch_size: int,
    rounds: int,
    noise: float,
    epsilon: float,
    delta: float,
    group_size: int = 1,
) -> dict[str, Any]:
    """The missing one of rounds, noise and epsilon.

    Raises:
        ConfigError: other than two of the three are given, or nothing fits.
    """
    from privacy.accounting import check_delta, default_delta, group_epsilon_of, round_up
    from privacy.calibration import noise_for_events, steps_for
    from privacy.events import Events, PoissonGaussian
    from privacy.mechanisms.dp_sgd import DpSgdTraining
    from simulations.config import ConfigError

    if sum(map(bool, (rounds, noise, epsilon))) != 2:
        raise ConfigError(
            f"--rounds={rounds}, --noise={noise:g}, --epsilon={epsilon:g}: give two of them, the third is computed"
        )

    batch_size = batch_size or min(256, records)
    if batch_size > records:
        raise ConfigError(
            f"--batch-size={batch_size} must be at most --records={records}: a step takes all of them and no more"
        )

    if group_size > records:
        raise ConfigError(
            f"--group-size={group_size} must be at most --records={records}: nobody has more rows than all"
        )

    sampling = DpSgdTraining(1.0, batch_size=batch_size)
    rate, before = sampling.sample_rate(records), sampling.steps(records, training.warmup)
    each = sampling.steps(records, training.each) + before * training.restart
    once = before * (not training.restart)

    def all_answers(multiplier: float, rounds: int) -> Events:
        return (PoissonGaussian(rate, multiplier, once + rounds * each),)

    try:
        chosen = delta or default_delta(records)
        check_delta(chosen, records)
        if not noise:
            noise = noise_for_events(epsilon, chosen, lambda s: all_answers(s, rounds), group_size)
        if not rounds:
            size = 1 if once else each
            rounds = (
                steps_for(epsilon, chosen, (PoissonGaussian(rate, noise, size),), group_size) * size - once
            ) // each
        if rounds < 1:
            raise ConfigError(f"--epsilon={epsilon:g} does not pay for one answer at --noise={noise:g}: add noise")
        events = all_answers(noise, rounds)
        cost = group_epsilon_of(events, chosen, group_size)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    (event,) = events
    return {
        "batch_size": batch_size,
        "rounds": rounds,
        "noise_multiplier": noise,
        "epsilon": round_up(cost),
        "delta": chosen,
        "sample_rate": rate,
        "steps": event.count,
        "unit": "record" if group_size == 1 else f"group({group_size})",
        "group_size": group_size,
        "adjacency": "zero_out",
        "accountant": "dp-accounting PLD, REPLACE_SPECIAL",
    }
