"""`consilium audit`: what attackers find out, and whether noise is what it claims; each says what it cannot show."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from consilium.audit_tables import print_labels, print_membership, print_one_run, say, table_of
from consilium.display import print_next
from consilium.exits import REFUTED, Format, exit_codes, print_json
from consilium.options import Out, Overrides, Reporting, free_folder

if TYPE_CHECKING:
    from simulations.probes.shadows import Subject, Wanted

audit_app = typer.Typer(
    help="Attack what a site shares, and test noise against its claim. A passed audit proves nothing.",
    no_args_is_help=True,
)

Config = Annotated[
    Path | None, typer.Argument(help="The study, or the folder of a run; handwritten digits by default.")
]
Site = Annotated[Path | None, typer.Option(help="A site's own file instead of a study; nothing leaves.")]
Client = Annotated[str, typer.Option(help="Whose rows; the largest site's by default.")]
Rounds = Annotated[
    int, typer.Option(help="With --site: rounds of training; those of its budget, or 20, by default.", min=0, max=10**6)
]
Epsilon = Annotated[
    float | None,
    typer.Option(help="Train by DP-SGD with this epsilon, whatever the file promises.", min=1e-3, max=1e3),
]
Delta = Annotated[float, typer.Option(help="With --epsilon; min(1e-5, 1/(10 n)) by default.", min=0.0, max=0.5)]
ClipNorm = Annotated[float, typer.Option(help="With --epsilon: largest norm of a record's gradient.", min=1e-6)]
BatchSize = Annotated[int, typer.Option(help="With --epsilon: records a step; the training's own by default.", min=0)]
Seed = Annotated[int, typer.Option(help="Of the audit.", min=0, max=2**63 - 1)]


def add_to(app: typer.Typer) -> None:
    """Give the command line these commands."""
    app.add_typer(audit_app, name="audit")


@audit_app.command("membership")
def membership(
    config: Config = None,
    site: Site = None,
    client: Client = "",
    rounds: Rounds = 0,
    shadows: Annotated[int, typer.Option(help="Models trained on halves of the rows; even.", min=6, max=256)] = 16,
    labels: Annotated[
        str, typer.Option(help="What is done to soft labels: codecs and temperature:T, separated by commas.")
    ] = "",
    epsilon: Epsilon = None,
    delta: Delta = 0.0,
    clip_norm: ClipNorm = 1.0,
    batch_size: BatchSize = 0,
    student_epochs: Annotated[int, typer.Option(help="The attacker's passes over the proxy rows.", min=1)] = 40,
    student_lr: Annotated[float, typer.Option(help="The attacker's step size.", min=1e-9)] = 0.005,
    seed: Seed = 1,
    out: Out = None,
    overrides: Overrides = None,
    reporting: Reporting = Format.text,
) -> None:
    """Who was trained on? Attacks on a site's model, and on nothing but its soft labels on public rows."""
    with exit_codes(reporting):
        from simulations.probes.audits import membership_of
        from simulations.probes.membership import TREATMENTS, Student

        folder = _folder(out, config, "membership")
        console = Console(stderr=reporting is Format.json)
        wanted = _wanted(epsilon, delta, clip_norm, batch_size)
        _one_of(client)
        chosen = (config, site, client, overrides)
        with _subjects(*chosen, rounds, wanted, folder) as subjects, _progress(console, "models") as on_model:
            found = membership_of(
                subjects[0],
                folder,
                shadows=shadows,
                treatments=_listed(labels) or TREATMENTS,
                student=Student(student_epochs, student_lr),
                seed=seed,
                on_model=on_model,
            )
        if reporting is Format.json:
            _print_found(found.as_json(), folder, refuted=found.refuted)
            return
        print_membership(console, found)
        _end(console, "membership", folder, "membership.svg")
        again = ["--epsilon", "3"] if found.epsilon is None else []
        print_next(console, _command("membership" if again else "one-run", chosen, again or _private(epsilon, delta)))
        _exit_if(found.refuted)


@audit_app.command("one-run")
def one_run(
    config: Config = None,
    site: Site = None,
    client: Client = "",
    rounds: Rounds = 0,
    canaries: Annotated[int, typer.Option(help="Records, half of which are trained on.", min=2, max=10_000)] = 500,
    guesses: Annotated[int, typer.Option(help="Even, at most canaries; to be fixed beforehand.", min=2)] = 100,
    epsilon: Epsilon = None,
    delta: Delta = 0.0,
    clip_norm: ClipNorm = 1.0,
    batch_size: BatchSize = 0,
    seed: Seed = 1,
    out: Out = None,
    overrides: Overrides = None,
    reporting: Reporting = Format.text,
) -> None:
    """What does one training with canaries prove that it leaks? Finds gross bugs of DP-SGD."""
    with exit_codes(reporting):
        from simulations.probes.audits import one_run_of

        folder = _folder(out, config, "one-run")
        console = Console(stderr=reporting is Format.json)
        _one_of(client)
        chosen = (config, site, client, overrides)
        wanted = _wanted(epsilon, delta, clip_norm, batch_size)
        with _subjects(*chosen, rounds, wanted, folder) as subjects, console.status("training with canaries"):
            found = one_run_of(subjects[0], folder, count=canaries, guesses=guesses, seed=seed)
        if reporting is Format.json:
            _print_found(found.as_json(), folder, refuted=found.refuted)
            return
        print_one_run(console, found)
        _end(console, "one-run", folder)
        print_next(console, "consilium audit mechanism")
        _exit_if(found.refuted)


@audit_app.command("labels")
def label_distribution(
    config: Config = None,
    site: Site = None,
    client: Annotated[str, typer.Option(help="Whose labels, separated by commas; all sites' by default.")] = "",
    rounds: Rounds = 0,
    epsilon: Epsilon = None,
    delta: Delta = 0.0,
    clip_norm: ClipNorm = 1.0,
    batch_size: BatchSize = 0,
    seed: Seed = 1,
    out: Out = None,
    overrides: Overrides = None,
    reporting: Reporting = Format.text,
) -> None:
    """Which classes does a site have, and how many rows of each? Read off its soft labels on public rows."""
    with exit_codes(reporting):
        from simulations.probes.audits import labels_of

        folder = _folder(out, config, "labels")
        console = Console(stderr=reporting is Format.json)
        wanted = _wanted(epsilon, delta, clip_norm, batch_size)
        chosen = (config, site, client, overrides)
        with _subjects(*chosen, rounds, wanted, folder) as subjects, _progress(console, "sites") as on_model:
            found = labels_of(subjects, folder, seed=seed, on_model=on_model)
        if reporting is Format.json:
            told = {
                name: {"kl_nats": each.kl_nats, "uniform_kl_nats": each.uniform_kl_nats} for name, each in found.items()
            }
            print_json("ok", 0, {"sites": told, **_where(folder)})
            return
        print_labels(console, found)
        _end(console, "labels", folder)
        print_next(console, _command("membership", (config, site, "", overrides), _private(epsilon, delta)))


@audit_app.command("mechanism")
def mechanism(
    names: Annotated[str, typer.Option(help="Mechanisms, separated by commas; all of them by default.")] = "",
    runs: Annotated[int, typer.Option(help="Releases of each of two neighbours.", min=100, max=10**6)] = 1000,
    seed: Seed = 1,
    out: Out = None,
    reporting: Reporting = Format.text,
) -> None:
    """Does the noise match the claim? Every mechanism, many times, on two made-up neighbours."""
    with exit_codes(reporting):
        from privacy.accounting import round_up
        from privacy.statement import shown_delta
        from simulations.probes.audits import mechanisms_of

        folder = free_folder(out, "audit-mechanism")
        console = Console(stderr=reporting is Format.json)
        with _progress(console, "mechanisms") as on_case:
            found = mechanisms_of(folder, _listed(names), runs, seed=seed, on_case=on_case)
        refuted = any(each.refuted for each in found)
        if reporting is Format.json:
            _print_found({"mechanisms": [each.row() for each in found]}, folder, refuted=refuted)
            return
        headings = ("mechanism", "hides a", "claimed epsilon", "at least", "at least, if normal", "verdict")
        table = table_of(headings, left=(0, 1, 5))
        for each in found:
            verdict = "[red]refuted[/]" if each.refuted else "stands"
            numbers = (round_up(each.claimed), each.epsilon_low, each.gaussian_epsilon_low)
            table.add_row(each.mechanism, each.unit, *(f"{number:.4f}" for number in numbers), verdict)
        console.print(table)
        console.print(f"{runs} releases of each neighbour, delta {shown_delta(found[0].delta)}, 95 %", highlight=False)
        _end(console, "mechanism", folder)
        print_next(console, "consilium audit one-run --epsilon 3")
        _exit_if(refuted)


@contextmanager
def _subjects(
    config: Path | None,
    site: Path | None,
    client: str,
    overrides: Sequence[str] | None,
    rounds: int,
    wanted: Wanted | None,
    out: Path,
) -> Iterator[list[Subject]]:
    """Who is audited: sites of a study, or one site by its own file."""
    import simulations
    from simulations.config import ConfigError, load_config
    from simulations.probes.audits import config_of, site_in, subjects_in

    if site is not None:
        if config is not None or client or overrides:
            raise ConfigError(f"--site {site} is audited by its own file: leave out CONFIG, --client and --set")
        with site_in(site, out, rounds, wanted) as found:
            yield found
        return
    if rounds:
        raise ConfigError(f"--rounds {rounds} goes with --site; a study's are --set federation.rounds={rounds}")
    path = config or Path(simulations.__file__).parent / "configs" / "demo.toml"
    if path.is_dir() and overrides:
        raise ConfigError(f"{path} is audited as it was run: leave out --set, or name the study's file")
    study = config_of(path) if path.is_dir() else load_config(path, overrides or ())
    with subjects_in(study, out, _listed(client), wanted) as found:
        yield found


@contextmanager
def _progress(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, a line now and then elsewhere."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=None)

        def done(count: int, total: int) -> None:
            progress.update(bar, completed=count, total=total)
            if not console.is_terminal and count % 20 == 0:
                console.print(f"{count}/{total} {what}", highlight=False)

        yield done


def _one_of(client: str) -> None:
    from simulations.config import ConfigError

    if len(_listed(client)) > 1:
        raise ConfigError(f"--client {client} names several clients, and this audit attacks one: name one, or none")


def _print_found(told: dict[str, Any], folder: Path, *, refuted: bool) -> None:
    """The one object; what an audit refutes is no success of what it audits."""
    print_json("error" if refuted else "ok", REFUTED if refuted else 0, {**told, **_where(folder)})
    _exit_if(refuted)


def _exit_if(refuted: bool) -> None:
    if refuted:
        raise typer.Exit(REFUTED)


def _wanted(epsilon: float | None, delta: float, clip_norm: float, batch_size: int) -> Wanted | None:
    from simulations.config import ConfigError
    from simulations.probes.shadows import Wanted

    if epsilon is None:
        if delta or clip_norm != 1.0 or batch_size:
            raise ConfigError("--delta, --clip-norm and --batch-size go with --epsilon: give it, or leave them out")
        return None
    return Wanted(epsilon, delta, clip_norm, batch_size)


def _end(console: Console, kind: str, folder: Path, shown: str = "") -> None:
    """What the audit shows, what it cannot, and where its files are."""
    from simulations.probes.audits import SHOWS

    can, cannot = SHOWS[kind]
    say(console, f"It can show {can}.")
    say(console, f"It cannot show {cannot}.")
    if kind != "mechanism":
        say(console, "These numbers are computed from private rows: to share them is a release.")
    where = f"Results in {folder}" + (f": open {folder / shown}" if shown else "")
    say(console, f"\n{where}")
    if (report := _where(folder)["report"]) is not None:
        say(console, f"The run's report shows them: open {report}")
    elif kind != "mechanism":
        say(console, f"A run's report shows them if its folder is audited: consilium audit {kind} runs/...")


def _folder(out: Path | None, config: Path | None, kind: str) -> Path:
    """`--out`; of a run's folder a free one in it, where its report finds it; else the next free one under runs/."""
    if config is not None and config.is_dir():
        return free_folder(out, kind, config / "audits")
    return free_folder(out, f"audit-{kind}")


def _where(folder: Path) -> dict[str, str | None]:
    """Where the files are, and the run's report that now shows them; null where they are in no run's folder."""
    from simulations.probes.audits import shown_in_report

    report = shown_in_report(folder)
    return {"out": str(folder), "report": None if report is None else str(report)}


def _command(kind: str, chosen: tuple[Path | None, Path | None, str, Sequence[str] | None], more: Sequence[str]) -> str:
    """An audit of the same site."""
    config, site, client, overrides = chosen
    words: list[Any] = ["consilium", "audit", kind]
    words += [config] if config is not None else []
    words += ["--site", site] if site is not None else []
    words += ["--client", client] if client else []
    words += [word for override in overrides or () for word in ("--set", override)]
    return shlex.join(map(str, [*words, *more]))


def _private(epsilon: float | None, delta: float) -> list[str]:
    words = [] if epsilon is None else ["--epsilon", f"{epsilon:g}"]
    return words + (["--delta", f"{delta:g}"] if delta else [])


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
