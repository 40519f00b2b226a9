"""DP-SGD as a mechanism: training pays for everything, the trained model's soft labels are free."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from privacy.events import Events, PoissonGaussian
from privacy.mechanisms.mechanism import positive, whole


@dataclass(frozen=True, slots=True)
class DpSgdTraining:
    """Noisy sums of clipped per-record gradients over Poisson samples (Abadi et al. 2016).

    With weights and samples fixed a record's gradient depends on that record only, so taking one record out removes one
    term of norm at most clip_norm from a sum that is divided by a constant.

    Attributes:
        noise_multiplier: s, standard deviation of the noise over clip_norm.
        clip_norm: largest L2 norm of a record's gradient, over all parameters.
        batch_size: records that a step expects; each is drawn with probability batch_size / n.
        clipping: "hooks" keeps every record's gradient; "ghost" only its norm, for large models.
        physical_batch: records whose gradients are in memory at once; changes no result.

    Raises:
        ValueError: a parameter out of range.
    """

    WORTH: ClassVar[str] = "the default: votes on any rows, any number of them and in any round cost nothing more"
    UNIT: ClassVar[str] = "record"
    ADJACENCY: ClassVar[str] = "zero_out"
    BASELINE: ClassVar[bool] = False
    noise_multiplier: float
    clip_norm: float = 1.0
    batch_size: int = 256
    clipping: Literal["hooks", "ghost"] = "hooks"
    physical_batch: int = 512

    def __post_init__(self) -> None:
        positive("noise_multiplier", self.noise_multiplier)
        positive("clip_norm", self.clip_norm)
        whole("batch_size", self.batch_size, 1)
        whole("physical_batch", self.physical_batch, 1)
        if self.clipping not in ("hooks", "ghost"):
            raise ValueError(f"clipping={self.clipping!r} must be 'hooks' or 'ghost'")

    def sample_rate(self, records: int) -> float:
        """q: of n records, which is public.

        >>> DpSgdTraining(1.0, batch_size=500).sample_rate(2000)
        0.25
        """
        return min(1.0, self.batch_size / whole("records", records, 1))

    def steps(self, records: int, epochs: int) -> int:
        """Steps in which each record is expected to be drawn `epochs` times.

        >>> DpSgdTraining(1.0, batch_size=300).steps(1000, 2)
        7
        """
        return math.ceil(whole("epochs", epochs, 0) * whole("records", records, 1) / min(self.batch_size, records))

    def fit_events(self, records: int, epochs: int) -> Events:
        """The cost of so much training, known before a record is read."""
        steps = self.steps(records, epochs)
        return (PoissonGaussian(self.sample_rate(records), self.noise_multiplier, steps),) if steps else ()

    def events(self, rows: int) -> Events:
        """Votes are functions of a model that is paid for."""
        whole("rows", rows, 0)
        return ()
