"""One torch thread a process, one device, and where randomness comes from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def single_thread() -> None:
    """One torch thread in this process: workers are the parallelism, and results do not depend on core counts."""
    torch.set_num_threads(1)


def device_named(name: str) -> torch.device:
    """`auto` is CUDA where there is one; anything else is torch's own name of a device.

    Raises:
        ValueError: torch does not know the device, or this machine does not have it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r} is none of torch's: use 'auto', 'cpu' or 'cuda'") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name!r} is not on this machine: use 'auto' or 'cpu'")
    return device


def generator(seed: int) -> torch.Generator:
    """A CPU generator of one named stream (torch's CPU generators use the low 32 bits of a seed)."""
    return torch.Generator().manual_seed(seed % 2**32)


@contextmanager
def initialised_from(seed: int) -> Iterator[None]:
    """Modules built inside draw their first weights from `seed`; the global generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**32)
        yield
