"""`consilium demo`, timed as a user sees it, and its comparison for the README.

python simulations/benchmarks/demo.py [--write]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from simulations.benchmarks.readme import machine, table, write_section
from simulations.comparison import comparison_rows

LIMIT_S = 60


def main() -> None:
    """Run it in a process of its own, print, and on request write the README's section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the README's section")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "consilium.cli", "demo", "--out", str(out)], check=True)
        seconds = time.perf_counter() - started
        run = json.loads((out / "run.json").read_text())
    rows = [[row.name, row.value, row.note] for row in comparison_rows(run)]
    gain = 100 * (run["student"]["accuracy"] - run["local_only"]["accuracy_mean"])
    gap = 100 * (run["pooled"]["accuracy"] - run["student"]["accuracy"])
    rows += [
        ["student above the mean client alone", f"{gain:.1f} points", "target: at least 10"],
        ["student below pooled data", f"{gap:.1f} points", "target: at most 6"],
        ["the whole command", f"{seconds:.0f} s", f"target: under {LIMIT_S} s"],
    ]
    text = table(["", "test accuracy", ""], rows) + f"\n\nOne seed; {machine()}."
    print(text)
    if arguments.write:
        write_section("demo", text)


if __name__ == "__main__":
    main()
