"""What a private phase of DP-SGD is, and what it did; without torch, so that plans and reports import it at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from privacy.events import PoissonGaussian
from privacy.mechanisms.mechanism import positive, whole


class UnsuitableModel(ValueError):
    """A model that DP-SGD cannot train as it is; the message names the module."""


@dataclass(frozen=True, slots=True)
class DpSgd:
    """One private phase; all of it public.

    Attributes:
        noise_multiplier: s, standard deviation of the noise on a step's sum over clip_norm.
        clip_norm: largest L2 norm of a record's gradient, over all parameters: the sum's sensitivity to one record.
        sample_rate: q in (0, 1], the probability of each record in each step.
        steps: T.
        mode: "hooks" keeps the gradients of every record in a physical batch; "ghost" only their norms, where a layer
            allows it: less memory, and for wide linear layers less time. Layers that run twice need "hooks".
        physical_batch: records whose gradients are computed at once; changes sums by their rounding only.

    Raises:
        ValueError: a value out of range; other modes (Opacus' ew and functorch, adaptive clipping) are not offered.
    """

    noise_multiplier: float
    clip_norm: float
    sample_rate: float
    steps: int
    mode: Literal["hooks", "ghost"] = "hooks"
    physical_batch: int = 512

    def __post_init__(self) -> None:
        positive("clip_norm", self.clip_norm)
        whole("physical_batch", self.physical_batch, 1)
        if self.mode not in ("hooks", "ghost"):
            raise ValueError(f"mode={self.mode!r} must be 'hooks' or 'ghost': others fail on empty batches or leak")
        self.event()  # refuses the rest

    def event(self) -> PoissonGaussian:
        """What the phase costs.

        >>> DpSgd(1.1, 0.5, 0.01, 100).event()
        PoissonGaussian(sample_rate=0.01, noise_multiplier=1.1, count=100)
        """
        return PoissonGaussian(self.sample_rate, self.noise_multiplier, whole("steps", self.steps, 1))


@dataclass(frozen=True, slots=True)
class DpLog:
    """What a phase did, counted where it happens: steps by the plain optimiser, draws by what adds the noise."""

    steps: int
    noise_draws: int
