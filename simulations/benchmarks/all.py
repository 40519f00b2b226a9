"""Every benchmark, one after another; each writes its section of the README. About half an hour on two cores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAMES = ("demo", "aggregation", "round_speed", "mnist_ds_fl")


def main() -> None:
    """Run them; the first that fails ends it."""
    for name in NAMES:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).with_name(f"{name}.py")), "--write"], check=True)


if __name__ == "__main__":
    main()
