"""Benchmarks write their own numbers into the README, between markers that carry their names."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from pathlib import Path

from simulations.engines.in_process import available_cores

README = Path(__file__).resolve().parents[2] / "README.md"


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    """The machine at hand, in a few words."""
    return f"{available_cores()} cores, {platform.machine()}, Python {platform.python_version()}"


def write_section(name: str, text: str, readme: Path = README) -> None:
    """Replace what stands between `<!-- bench:name -->` and `<!-- /bench:name -->`.

    Raises:
        ValueError: the README has no such markers.
    """
    before = readme.read_text()
    pattern = re.compile(rf"(<!-- bench:{re.escape(name)} -->\n).*?(<!-- /bench:{re.escape(name)} -->)", re.DOTALL)
    if not pattern.search(before):
        raise ValueError(f"{readme} has no section for the benchmark {name!r}: add its two markers")
    readme.write_text(pattern.sub(lambda match: match[1] + text.rstrip() + "\n" + match[2], before))
