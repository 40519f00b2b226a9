"""The command line. Commands import what they need themselves, so that `--help` needs neither torch nor Flower."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from consilium import audits, studies, sweeps
from consilium.budget import budget_app
from consilium.display import RunView, print_comparison, print_next
from consilium.exits import DEGRADED, FAILED, INTERRUPTED, REFUSED, Format, exit_codes, print_json
from consilium.keys import keys_app
from consilium.options import ConfigFile, Out, Overrides, Reporting, Resume, Strict, free_folder

if TYPE_CHECKING:
    from simulations.config import ExperimentConfig

app = typer.Typer(
    name="consilium",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
deploy_app = typer.Typer(help="Run over real Flower nodes.", no_args_is_help=True)
app.add_typer(deploy_app, name="deploy")


class Kind(StrEnum):
    """What `new` makes."""

    tabular = "tabular"
    images = "images"


@app.callback()
def consilium(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Federated distillation: sites exchange soft labels on public rows, never data or weights."""
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"consilium {installed('consilium')}")
        raise typer.Exit


@app.command()
def demo(
    out: Out = None, overrides: Overrides = None, resume: Resume = False, reporting: Reporting = Format.text
) -> None:
    """Ten sites, handwritten digits, three kinds of models, twenty rounds: under a minute, no download."""
    with exit_codes(reporting):
        import simulations
        from simulations.config import load_config

        path = Path(simulations.__file__).parent / "configs" / "demo.toml"
        config = load_config(path, overrides or ())
        _run(config, free_folder(out, "demo"), resume, False, reporting, "consilium new tabular my-study")


@app.command()
def run(
    config: ConfigFile,
    out: Out = None,
    overrides: Overrides = None,
    engine: Annotated[
        str | None,
        typer.Option(help="in-process, flower-simulation or deployment; the file's own by default."),
    ] = None,
    resume: Resume = False,
    strict: Strict = False,
    reporting: Reporting = Format.text,
) -> None:
    """Run an experiment and write its folder: tables, plots, a report, the student.

    A rule of your own is strategy.aggregator=module:Name; the working directory is looked into, too.
    """
    chosen = [] if engine is None else [f"federation.engine={json.dumps(engine)}"]
    _run_file(config, [*(overrides or ()), *chosen], config.stem, out, resume, strict, reporting)


@app.command()
def new(
    kind: Annotated[Kind, typer.Argument(help="What the rows are.")],
    name: Annotated[str, typer.Argument(help="Folder to make.")],
) -> None:
    """Write a commented configuration, a README and example data that run as they are, offline."""
    with exit_codes(Format.text):
        from consilium.new import create_project

        console = Console()
        for path in create_project(kind.value, Path(name))[:12]:
            console.print(f"  wrote {path}", highlight=False)
        print_next(console, f"cd {name} && consilium run config.toml")


@deploy_app.command("local")
def deploy_local(
    config: ConfigFile,
    nodes: Annotated[
        int | None,
        typer.Option(help="Sites, each a SuperNode of its own; the file's own clients by default.", min=1, max=64),
    ] = None,
    out: Out = None,
    overrides: Overrides = None,
    resume: Resume = False,
    strict: Strict = False,
    reporting: Reporting = Format.text,
) -> None:
    """Start a SuperLink and SuperNodes on 127.0.0.1, run the experiment over them, stop what was started."""
    chosen = ['federation.engine="deployment"', *([] if nodes is None else [f"federation.clients={nodes}"])]
    _run_file(config, [*(overrides or ()), *chosen], f"{config.stem}-deployed", out, resume, strict, reporting)


sweeps.add_to(app)
app.add_typer(budget_app, name="budget")
app.add_typer(keys_app, name="keys")
audits.add_to(app)
studies.add_to(app)  # here, so that --help begins with the commands above


def _run_file(
    path: Path, overrides: list[str], stem: str, out: Path | None, resume: bool, strict: bool, reporting: Format
) -> None:
    """What `run` and `deploy local` share: a file with overrides, run into `out` or the next free runs/stem-N."""
    with exit_codes(reporting):
        from simulations.config import ConfigError, load_config

        if resume and out is None:
            raise ConfigError("--resume needs --out: name the folder of the run to go on with")
        config = load_config(path, overrides)
        _run(config, free_folder(out, stem), resume, strict, reporting, _next_after(config))


def _run(config: ExperimentConfig, out: Path, resume: bool, strict: bool, reporting: Format, next_command: str) -> None:
    """One experiment with its live view, its comparison and the exit code that tells the truth."""
    from simulations.experiment import run_experiment

    console = Console(stderr=reporting is Format.json)
    title = f"{config.data.name}, {config.federation.clients} sites, {config.federation.engine}"
    try:
        with RunView(title, config.federation.rounds, console) as view:
            result = run_experiment(config, out, resume=resume, view=view)
    except KeyboardInterrupt:
        console.print("interrupted", style="bold red")
        begun = (out / "config.json").is_file()
        print_next(console, _resume_command(sys.argv[1:], out) if begun else shlex.join(_words(sys.argv[1:])))
        if reporting is Format.json:
            print_json("error", INTERRUPTED, {"message": "interrupted", "out": str(out)})
        raise typer.Exit(INTERRUPTED) from None
    code = _code_of(result, strict)
    if reporting is Format.json:
        print_json("ok" if code == 0 else "error", code, {**result, "out": str(out)})
    else:
        print_comparison(console, result)
        _say_where(console, result, out)
        others = {
            FAILED: _resume_command(sys.argv[1:], out),
            REFUSED: shlex.join(["consilium", "budget", "show", str(out)]),
        }
        print_next(console, others.get(code, next_command))
    if code:
        raise typer.Exit(code)


def _say_where(console: Console, result: dict[str, Any], out: Path) -> None:
    if result["verdict"] != "ok":
        reason = result["reason"] or f"{len(result['failures'])} answers were missing or refused; see run.json"
        console.print(f"{result['verdict']}: {reason}", style="bold red", highlight=False, markup=False)
    console.print(f"\nResults in {out}: open {out / 'report.html'}", highlight=False, soft_wrap=True)


def _code_of(result: dict[str, Any], strict: bool) -> int:
    if result["verdict"] == "failed":
        return REFUSED if result["refused"] else FAILED
    return DEGRADED if result["verdict"] == "degraded" and strict else 0


def _next_after(config: ExperimentConfig) -> str:
    """The comparison that most people want to see after this run: the same one with another rule."""
    from strategies.presets import PRESETS

    strategy = config.strategy
    rule, its_own = strategy.aggregator, PRESETS[strategy.preset].strategy["aggregator"]
    change = f"strategy.aggregator={'mean' if rule.name != 'mean' else 'era'}"
    if not config.student.distil_epochs:  # a method without a student stays one with another rule
        change = "strategy.preset=ds-fl"
    elif config.attack is not None and strategy.preset != "guarded" and {"name": rule.name, **rule.settings} == its_own:
        change = "strategy.preset=guarded"
    return shlex.join([*_words(sys.argv[1:]), "--set", change])


def _words(arguments: Sequence[str]) -> list[str]:
    """This command again, without its folder and --resume."""
    words, skip = ["consilium"], False
    for word in arguments:
        if not skip and word not in ("--out", "--resume") and not word.startswith("--out="):
            words.append(word)
        skip = word == "--out"
    return words


def _resume_command(arguments: Sequence[str], out: Path) -> str:
    """The command that goes on with an interrupted one: the same words, its folder and --resume."""
    return shlex.join([*_words(arguments), "--out", str(out), "--resume"])


def main() -> None:
    """Entry point of the `consilium` script."""
    app(prog_name="consilium")


if __name__ == "__main__":
    main()
