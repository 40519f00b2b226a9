"""The command line. Commands import what they need themselves, so that `--help` needs neither torch nor Flower."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from consilium.display import RunView, print_comparison, print_next

if TYPE_CHECKING:
    from simulations.config import ExperimentConfig

# What each kind of failure exits with; the README and users.md list them.
FAILED, DEGRADED, INTERRUPTED = 3, 4, 130
_CODES = {
    "ConfigError": 2,
    "ProjectError": 2,
    "SiteConfigError": 2,
    "RunFailed": 3,
    "QuorumError": 3,
    "WorkerError": 3,
    "PlatformError": 6,
    "DataError": 7,
    "CheckpointError": 8,
    "StateError": 8,
    "ModuleNotFoundError": 9,
    "OSError": 9,
}

app = typer.Typer(
    name="consilium",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
deploy_app = typer.Typer(help="Run over real Flower nodes.", no_args_is_help=True)
app.add_typer(deploy_app, name="deploy")


class Format(StrEnum):
    """How a command reports."""

    text = "text"
    json = "json"


class Kind(StrEnum):
    """What `new` makes."""

    tabular = "tabular"
    images = "images"


ConfigFile = Annotated[Path, typer.Argument(help="The experiment's TOML file.")]
Out = Annotated[Path | None, typer.Option(help="Folder of results; the next free one under runs/ by default.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; repeatable."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on after the last finished round in --out.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 4 if any site's answer was missing or refused.")]
Reporting = Annotated[Format, typer.Option("--format", help="json: one object on standard output.")]


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
    with _exit_codes(reporting):
        import simulations
        from simulations.config import load_config

        path = Path(simulations.__file__).parent / "configs" / "demo.toml"
        config = load_config(path, overrides or ())
        _run(config, _folder(out, "demo"), resume, False, reporting, "consilium new tabular my-study")


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
    """Run an experiment and write its folder: tables, plots, a report, the student."""
    chosen = [] if engine is None else [f"federation.engine={json.dumps(engine)}"]
    _run_file(config, [*(overrides or ()), *chosen], config.stem, out, resume, strict, reporting)


@app.command()
def new(
    kind: Annotated[Kind, typer.Argument(help="What the rows are.")],
    name: Annotated[str, typer.Argument(help="Folder to make.")],
) -> None:
    """Write a commented configuration, a README and example data that run as they are, offline."""
    with _exit_codes(Format.text):
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


def _run_file(
    path: Path, overrides: list[str], stem: str, out: Path | None, resume: bool, strict: bool, reporting: Format
) -> None:
    """What `run` and `deploy local` share: a file with overrides, run into `out` or the next free runs/stem-N."""
    with _exit_codes(reporting):
        from simulations.config import ConfigError, load_config

        if resume and out is None:
            raise ConfigError("--resume needs --out: name the folder of the run to go on with")
        config = load_config(path, overrides)
        _run(config, _folder(out, stem), resume, strict, reporting, _next_after(config))


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
            _print_json("error", INTERRUPTED, {"message": "interrupted", "out": str(out)})
        raise typer.Exit(INTERRUPTED) from None
    code = _code_of(result["verdict"], strict)
    if reporting is Format.json:
        _print_json("ok" if code == 0 else "error", code, {**result, "out": str(out)})
    else:
        print_comparison(console, result)
        _say_where(console, result, out)
        print_next(console, _resume_command(sys.argv[1:], out) if code == FAILED else next_command)
    if code:
        raise typer.Exit(code)


def _say_where(console: Console, result: dict[str, Any], out: Path) -> None:
    if result["verdict"] != "ok":
        reason = result["reason"] or f"{len(result['failures'])} answers were missing or refused; see run.json"
        console.print(f"{result['verdict']}: {reason}", style="bold red", highlight=False, markup=False)
    console.print(f"\nResults in {out}: open {out / 'report.html'}", highlight=False, soft_wrap=True)


def _code_of(verdict: str, strict: bool) -> int:
    if verdict == "failed":
        return FAILED
    return DEGRADED if verdict == "degraded" and strict else 0


def _folder(out: Path | None, stem: str) -> Path:
    """`--out`, or the next free folder under runs/."""
    if out is not None:
        return out
    number = 1
    while (folder := Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return folder


def _next_after(config: ExperimentConfig) -> str:
    """The comparison that most people want to see after this run: the same one with another rule."""
    rule = "mean" if config.strategy.aggregator.name != "mean" else "era"
    return shlex.join([*_words(sys.argv[1:]), "--set", f"strategy.aggregator={rule}"])


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


def _print_json(status: str, code: int, data: Any) -> None:
    typer.echo(json.dumps({"schema": 1, "status": status, "code": code, "data": data}))


@contextmanager
def _exit_codes(reporting: Format) -> Iterator[None]:
    """Translate what commands raise into one sentence and an exit code; SIGTERM ends a command as Ctrl-C does."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted", style="bold red")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        kinds = (kind.__name__ for kind in type(error).__mro__)
        code = next((_CODES[kind] for kind in kinds if kind in _CODES), 1)
        message = _missing(error) if isinstance(error, ModuleNotFoundError) else str(error)
        if code == 1:
            traceback.print_exc()
            message = f"internal error, this is our bug: {type(error).__name__}: {error}"
        if reporting is Format.json:
            _print_json("error", code, {"message": message})
        Console(stderr=True).print(f"error: {message}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(code) from None


def _missing(error: ModuleNotFoundError) -> str:
    extra = "sim" if error.name == "ray" else "lab"
    return f"the package {error.name!r} is not installed: pip install 'consilium[{extra}]'"


def main() -> None:
    """Entry point of the `consilium` script."""
    app(prog_name="consilium")


if __name__ == "__main__":
    main()
