"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consilium.exits import Format

ConfigFile = Annotated[Path, typer.Argument(help="The experiment's TOML file.")]
Out = Annotated[Path | None, typer.Option(help="Folder of results; the next free one under runs/ by default.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; repeatable."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on after the last finished round in --out.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 4 if any site's answer was missing or refused.")]
Reporting = Annotated[Format, typer.Option("--format", help="json: one object on standard output.")]


def free_folder(out: Path | None, stem: str, under: Path = Path("runs")) -> Path:
    """`--out`, or the next free folder under runs/ or elsewhere."""
    if out is not None:
        return out
    number = 1
    while (folder := under / f"{stem}-{number}").exists():
        number += 1
    return folder
