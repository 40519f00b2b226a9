"""Commands around a run: which methods there are, whether a proxy set suits, whom to forget, what attacks cost."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from consilium.display import print_next
from consilium.exits import Format, exit_codes, print_json
from consilium.options import ConfigFile, Out, Overrides, Reporting, free_folder
from simulations.reporting.comparison import percent

bench_app = typer.Typer(help="Measure rules against each other.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Give the command line these commands."""
    app.command("presets")(presets)
    app.command("proxy-fit")(proxy_fit)
    app.command("forget")(forget)
    app.command("check-rule")(check_rule)
    app.add_typer(bench_app, name="bench")


def presets(
    name: Annotated[str | None, typer.Argument(help="One preset, with everything that it sets.")] = None,
    reporting: Reporting = Format.text,
) -> None:
    """The published methods, each as the parts that it is made of."""
    with exit_codes(reporting):
        from strategies.presets import PRESETS

        if name is not None and name not in PRESETS:
            from simulations.config import ConfigError

            raise ConfigError(f"unknown preset {name!r}; known: {', '.join(sorted(PRESETS))}")
        told: dict[str, dict[str, Any]] = {
            key: {
                "source": preset.source,
                "idea": preset.idea,
                "differs": preset.differs,
                "sets": _sets(preset),
                "refuses": dict(preset.refuses),
            }
            for key, preset in PRESETS.items()
            if name in (None, key)
        }
        if reporting is Format.json:
            print_json("ok", 0, told)
            return
        console = Console()
        for key, preset in told.items():
            console.print(f"[bold]{key}[/bold]  [dim]{escape(preset['source'])}[/dim]", highlight=False)
            console.print(f"  {escape(preset['idea'])}", highlight=False)
            for setting, value in preset["sets"].items():
                console.print(f"  {setting} = {escape(_toml(value))}", highlight=False, soft_wrap=True)
            if preset["differs"]:
                console.print(f"  [dim]differs from the paper: {escape(preset['differs'])}[/dim]", highlight=False)
            for capability, why in preset["refuses"].items():
                console.print(f"  [yellow]not with {capability}: {escape(why)}[/yellow]", highlight=False)
        example = name or "scarlet"
        print_next(console, f"consilium demo --set strategy.preset={example}")


def proxy_fit(
    config: ConfigFile, out: Out = None, overrides: Overrides = None, reporting: Reporting = Format.text
) -> None:
    """Before a run: does this proxy set suit these sites? One local training, then a plain verdict."""
    with exit_codes(reporting):
        from simulations.config import load_config
        from simulations.probes.commands import fit_of

        loaded = load_config(config, overrides or ())
        folder = free_folder(out, f"{config.stem}-proxy-fit")
        console = Console(stderr=reporting is Format.json)
        with console.status("training every site once"):
            fit = fit_of(loaded, folder)
        if reporting is Format.json:
            print_json("ok", 0, {**fit.as_json(), "out": str(folder)})
            return
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("site", "keeps", "agrees", "entropy, nats", "on test rows"):
            table.add_column(heading, justify="left" if heading == "site" else "right")
        for row in fit.rows():
            agrees, entropy = percent(row["agreement"]), row["entropy_nats"]
            nats = "–" if entropy is None else f"{entropy:.2f}"
            table.add_row(row["site"], f"{row['kept']:.0%}", agrees, nats, f"{row['test_entropy_nats']:.2f}")
        console.print(table)
        shares = "  ".join(f"{name} {share:.0%}" for name, share in fit.class_shares.items())
        console.print(f"hard vote: {shares}", highlight=False, markup=False, soft_wrap=True)
        if fit.accuracy is not None:
            console.print(f"ensemble's accuracy on the proxy rows' labels: {fit.accuracy:.1%}", highlight=False)
        for reason in fit.reasons:
            console.print(f"  {reason}", highlight=False, markup=False, soft_wrap=True)
        colour = {"suitable": "green", "doubtful": "yellow", "unsuitable": "red"}[fit.verdict]
        console.print(f"verdict: [bold {colour}]{fit.verdict}[/]", highlight=False)
        console.print(f"\nResults in {folder}", highlight=False, markup=False, soft_wrap=True)
        print_next(console, shlex.join(["consilium", "run", str(config), *_flags(overrides or ())]))


def forget(
    run: Annotated[Path, typer.Argument(help="A run's folder, made with federation.keep_votes = true.")],
    client: Annotated[list[str], typer.Option(help="Whose votes are to be taken out, for good; repeatable.")],
    delete_votes: Annotated[
        bool, typer.Option("--delete-votes", help="Then delete the forgotten clients' votes from the run's folder.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of results; RUN/without-CLIENT by default.")] = None,
    reporting: Reporting = Format.text,
) -> None:
    """Take clients' votes out of a finished run and let the student learn anew; who was forgotten before stays out."""
    with exit_codes(reporting):
        from simulations.probes.forgetting import forget_in

        clients = list(dict.fromkeys(client))
        # A folder's name has 255 bytes.
        named = "-".join(clients) if len(clients) < 4 else f"{clients[0]}-and-{len(clients) - 1}-more"
        folder = out or run / f"without-{named}"
        console = Console(stderr=reporting is Format.json)
        with console.status(f"aggregating again without {escape(', '.join(clients))}"):
            told = forget_in(run, clients, folder, delete_votes=delete_votes)
        if reporting is Format.json:
            print_json("ok", 0, {**told, "out": str(folder)})
            return
        before, after = told["student_accuracy_before"], told["student_accuracy"]
        if before is not None and after is not None:
            scores = f"student with {', '.join(told['clients'])}: {before:.1%}   without: {after:.1%}"
            console.print(scores, highlight=False, markup=False, soft_wrap=True)
        for sentence in (told["statement"], told["remains"]):
            console.print(sentence, highlight=False, markup=False, soft_wrap=True)
        console.print(f"\nResults in {folder}", highlight=False, markup=False, soft_wrap=True)
        student = f"import consilium; print(consilium.load_student({json.dumps(str(folder))}).classes)"
        print_next(console, shlex.join(["python", "-c", student]))


def check_rule(
    name: Annotated[str, typer.Argument(help="A rule's name, or module:Name of your own.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One of its settings; repeatable.")
    ] = None,
    reporting: Reporting = Format.text,
) -> None:
    """Does a rule keep the laws of all rules? For your own ones, before a run depends on them.

    The module is looked for in the working directory, too.
    """
    with exit_codes(reporting):
        from simulations.probes.commands import check_rule_named
        from strategies.contract import LAWS

        check_rule_named(name, settings or ())
        if reporting is Format.json:
            print_json("ok", 0, {"rule": name, "laws": list(LAWS), "broken": []})
            return
        console = Console()
        tried = f"{name} was tried on small rounds and broke none of the laws of all rules:"
        console.print(tried, highlight=False, markup=False, soft_wrap=True)
        for law in LAWS:
            console.print(f"  {law}", highlight=False)
        parts = [f"strategy.aggregator={name}", *(f"strategy.aggregator.{setting}" for setting in settings or ())]
        print_next(console, shlex.join(["consilium", "demo", *_flags(parts)]))


@bench_app.command("robustness")
def robustness(
    config: Annotated[
        Path | None, typer.Argument(help="The study to attack; ten sites with handwritten digits by default.")
    ] = None,
    out: Out = None,
    overrides: Overrides = None,
    rules: Annotated[
        str, typer.Option(help="Rules, or module:Name, separated by commas; all of the grid by default.")
    ] = "",
    attacks: Annotated[str, typer.Option(help="Attacks, separated by commas; all of the grid by default.")] = "",
    seeds: Annotated[int, typer.Option(help="So many seeds, from the configuration's own on.", min=1, max=100)] = 1,
    reporting: Reporting = Format.text,
) -> None:
    """The grid attack x aggregator: points of student accuracy that each rule loses to each attack."""
    with exit_codes(reporting):
        import simulations
        from simulations.config import load_config
        from simulations.probes.commands import robustness_of

        path = config or Path(simulations.__file__).parent / "configs" / "robustness.toml"
        loaded = load_config(path, overrides or ())
        folder = free_folder(out, "robustness")
        console = Console(stderr=reporting is Format.json)
        columns = (TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("cells")

            def on_cell(done: int, total: int) -> None:
                progress.update(bar, completed=done, total=total)
                if not console.is_terminal and done % 20 == 0:
                    console.print(f"{done}/{total} cells", highlight=False)

            grid = robustness_of(loaded, folder, _listed(rules), _listed(attacks), seeds, on_cell)
        if reporting is Format.json:
            print_json("ok", 0, {**grid, "out": str(folder)})
            return
        _print_grid(console, grid)
        console.print(f"\nResults in {folder}: open {folder / 'robustness.svg'}", highlight=False, soft_wrap=True)
        study = [str(path), *_flags(overrides or ())]
        print_next(console, shlex.join(["consilium", "run", *study, "--set", "strategy.preset=guarded"]))


def _print_grid(console: Console, grid: Mapping[str, Any]) -> None:
    """Accuracy without an attack, then the points of it that are lost; rules that were not hurt much are green."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("points lost to (attackers)")
    for rule in grid["rules"]:
        table.add_column(rule, justify="right")
    table.add_row("nobody: accuracy", *(percent(grid["accuracy"][rule]) for rule in grid["rules"]), end_section=True)
    for attack in grid["attacks"]:
        cells = []
        for rule in grid["rules"]:
            points = grid["lost"][attack][rule]
            colour = "red" if points is None or points > 10 else "yellow" if points > 3 else "green"
            cells.append(f"[{colour}]{'fails' if points is None else f'{points:.1f}'}[/]")
        table.add_row(attack, *cells)
    console.print(table)


def _sets(preset: Any) -> dict[str, Any]:
    sections = ("federation", "strategy", "client", "student")
    return {f"{section}.{key}": value for section in sections for key, value in getattr(preset, section).items()}


def _toml(value: Any) -> str:
    """A value as one would write it in the configuration."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)


def _flags(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
