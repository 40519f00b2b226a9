"""Every benchmark, one after another; each writes its section of the README: several hours on two cores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMANDS = (
    ("comparisons", "demo"),
    ("comparisons", "heart-disease"),
    ("aggregation",),
    ("round_speed",),
    ("rules",),
    ("robustness",),
    ("presets",),
    ("scarlet",),
    ("cfd",),
    ("ledger",),
    ("dp_cost",),
    ("dp_accuracy",),
    ("private_federation",),
    ("membership",),
    ("secure_sum",),
)


def main() -> None:
    """Run them; the first that fails ends it."""
    for name, *arguments in COMMANDS:
        print("==", name, *arguments, flush=True)
        script = str(Path(__file__).with_name(f"{name}.py"))
        subprocess.run([sys.executable, script, *arguments, "--write"], check=True)


if __name__ == "__main__":
    main()
