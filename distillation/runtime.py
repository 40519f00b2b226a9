"""One torch thread a process, one device, and where randomness comes from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def single_thread() -> None:
    """One torch thread in this process: workers are the parallelism, and results do not depend on core counts."""
    torch.set_num_threads(1)


def device_named(name: str) -> torch.device:
    """The device `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is CUDA where there is one.

    On CUDA torch's deterministic algorithms are asked for, where it has them; bitwise equal results are promised on
    CPUs only.

    Raises:
        ValueError: another name, or this machine does not have the device.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError(f"device={name!r} is not known: use 'auto', 'cpu', 'cuda' or 'cuda:0'")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and count == 0):
        return torch.device("cpu")
    number = int(name.partition(":")[2] or 0)
    if number >= count:
        raise ValueError(f"device={name!r} is not on this machine, which has {count} CUDA devices: use 'auto' or 'cpu'")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device("cuda", number)


def generator(seed: int) -> torch.Generator:
    """A CPU generator of one named stream; `seed` has 64 bits, of which torch's CPU generators use the low 32.

    Its `initial_seed()` still has all of them: simulated noise is made from that, and no two streams share any.
    """
    return torch.Generator().manual_seed(seed)


@contextmanager
def initialised_from(seed: int) -> Iterator[None]:
    """Modules built inside draw their first weights from `seed`; the global generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**32)  # the CPU's alone; torch.manual_seed would seed CUDA, too
        yield
