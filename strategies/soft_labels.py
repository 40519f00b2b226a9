"""Soft labels: one row of class log-probabilities for every answered proxy row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]

# A probability of 1e-7 in nats: below it a vote says "never", and one such vote could veto a class for all.
LOG_FLOOR = float(np.log(1e-7))
# What is further below a row's largest logit is no further away: float32, in which soft labels are kept, ends here.
_LEAST = float(np.finfo(np.float32).min)
# float32 log-probabilities of up to 10,000 classes normalise to about 1e-6; more means they never were.
_NORMAL_TOLERANCE = 1e-4


def log_softmax(logits: NDArray[np.floating]) -> Float64:
    """Log-probabilities of logits, computed in float64.

    Args:
        logits: [n, classes] finite, any scale; a constant added to a row changes nothing.

    Returns:
        [n, classes] natural log, from -3.4e38 (the least float32) to 0; each row logsumexps to 0.

    >>> np.exp(log_softmax(np.array([[0.0, np.log(3.0)]]))).round(4).tolist()
    [[0.25, 0.75]]
    """
    shifted = np.asarray(logits, dtype=np.float64)
    with np.errstate(over="ignore"):
        shifted = np.maximum(shifted - shifted.max(axis=1, keepdims=True), _LEAST)
    normalised: Float64 = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalised


def floored(log_probs: Float32) -> Float32:
    """Log-probabilities, none below ln 1e-7."""
    return np.maximum(log_probs, np.float32(LOG_FLOOR))


@dataclass(frozen=True, slots=True, eq=False)
class SoftLabels:
    """Log-probabilities on some rows of the proxy set, at temperature 1.

    Attributes:
        rows: [n] proxy row numbers, strictly increasing, from 0.
        log_probs: [n, classes] natural log, finite; each row logsumexps to 0.

    Raises:
        ValueError: a shape, a type, the order of rows, a value that is not finite, or a row that is no
            distribution.
    """

    rows: Int64
    log_probs: Float32

    def __post_init__(self) -> None:
        if self.rows.dtype != np.int64 or self.rows.ndim != 1:
            raise ValueError(f"rows is {self.rows.dtype}{list(self.rows.shape)}: int64 [n] expected")
        if self.log_probs.dtype != np.float32 or self.log_probs.ndim != 2:
            raise ValueError(
                f"log_probs is {self.log_probs.dtype}{list(self.log_probs.shape)}: float32 [n, classes] expected"
            )
        if len(self.rows) != len(self.log_probs):
            raise ValueError(f"rows has {len(self.rows)} entries and log_probs {len(self.log_probs)}: one each")
        if len(self.rows) and (self.rows[0] < 0 or (np.diff(self.rows) <= 0).any()):
            raise ValueError("rows must be strictly increasing from 0: sort them and drop repeats")
        if not np.isfinite(self.log_probs).all():
            raise ValueError("log_probs has a value that is not finite: start from finite logits")
        drift = np.abs(np.log(np.exp(self.log_probs, dtype=np.float64).sum(axis=1)))
        if len(drift) and drift.max() > _NORMAL_TOLERANCE:
            raise ValueError(
                f"log_probs row {int(drift.argmax())} logsumexps to {drift.max():.2g}, not 0: use from_logits"
            )

    @classmethod
    def from_logits(cls, rows: Int64, logits: NDArray[np.floating]) -> SoftLabels:
        """Soft labels of raw model outputs, or of log-probabilities that are to be normalised again.

        Raises:
            ValueError: as above, and for a logit that is not finite: minus infinity is no float32 label.
        """
        if not np.isfinite(logits).all():
            raise ValueError("logits have a value that is not finite: a model has diverged, or a log was taken of 0")
        return cls(rows, log_softmax(logits).astype(np.float32))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.log_probs.shape[1])

    def probabilities(self) -> Float64:
        """[n, classes] probabilities."""
        return np.exp(self.log_probs, dtype=np.float64)
