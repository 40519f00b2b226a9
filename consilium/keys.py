"""`consilium keys`: a site's identity, and the registry by which sites know each other in secure sums."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from consilium.display import print_next
from consilium.exits import Format, exit_codes, print_json
from consilium.options import Reporting

keys_app = typer.Typer(
    help="Who may be in a secure sum: each site's key, and the registry that their owners agree on.",
    no_args_is_help=True,
)


@keys_app.command("new")
def new(
    folder: Annotated[Path, typer.Argument(metavar="SITE_FOLDER", help="The folder of the site's site.toml.")],
    reporting: Reporting = Format.text,
) -> None:
    """Make a site's private key, which stays there, and the line with its public one, for the owners of the others.

    A key that is there already is kept, and its line written again.
    """
    with exit_codes(reporting):
        from client.config import load_site
        from client.identity import IDENTITY, own_key, public_line, write_public

        site = load_site(folder / "site.toml").site
        line = folder / f"{site}.pub"
        kept = (folder / IDENTITY).exists()
        public = own_key(folder / IDENTITY)
        write_public(line, site, public)
        if reporting is Format.json:
            told = {"site": site, "public": public.hex(), "identity": str(folder / IDENTITY), "line": str(line)}
            print_json("ok", 0, told)
            return
        console = Console()
        _say(console, f"  {'kept' if kept else 'wrote'} {folder / IDENTITY}: private, it never leaves this site")
        _say(console, f"  wrote {line}: for the owners of the other sites")
        _say(console, public_line(site, public).strip())
        print_next(console, f"consilium keys registry {line} THEIRS.pub ... --out registry.json")


@keys_app.command("registry")
def registry(
    lines: Annotated[list[Path], typer.Argument(metavar="PUB...", help="The .pub file of every site.")],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("registry.json"),
    reporting: Reporting = Format.text,
) -> None:
    """Put public lines together; every owner compares the printed SHA-256 with the others, by telephone for example."""
    with exit_codes(reporting):
        from client.identity import IDENTITY, joined, write_registry
        from privacy.secure_sum.session import FEWEST

        known = joined(lines)
        sha256 = write_registry(out, known)
        if reporting is Format.json:
            told = {"registry": str(out), "sha256": sha256, "sites": {site: key.hex() for site, key in known.items()}}
            print_json("ok", 0, told)
            return
        console = Console()
        for site, key in sorted(known.items()):
            _say(console, f"  {site} {key.hex()}")
        _say(console, f"  wrote {out}: {len(known)} sites, sha256 {sha256}")
        _say(console, "  in the [policy] of every site.toml, with this file beside it:")
        # Then fewer than a third of the sites gain nothing together, and nobody is in a sum of two: see the README of
        # privacy.secure_sum.
        fewest = max(FEWEST, -(-2 * len(known) // 3))
        for said in (f'sum_registry = "{out.name}"', f'sum_identity = "{IDENTITY}"', f"sum_threshold = {fewest}"):
            _say(console, f"    {said}")
        print_next(console, f"sha256sum {out}")


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)
