"""Label-distribution inference: how many records of each class a site has, read off its soft labels on public rows.

It is a property of the whole data set, and record-level differential privacy does not protect it. Design reference 8.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

# A guess of 0 for a class that is there would be infinitely wrong.
_FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class LabelInference:
    """A guess of a class distribution, and how far off it is.

    Attributes:
        truth, guess: [classes] shares that sum to 1.
        kl_nats: KL(truth, guess); 0 is exact.
        uniform_kl_nats: KL(truth, uniform), what a guess without any soft label is off.
    """

    truth: tuple[float, ...]
    guess: tuple[float, ...]
    kl_nats: float
    uniform_kl_nats: float

    @property
    def found(self) -> float:
        """Share of what there was to find out, in nats: 1 is all of it, 0 nothing, below 0 worse than a uniform guess.

        NaN where the truth is uniform and so nothing was to be found out.
        """
        return 1.0 - self.kl_nats / self.uniform_kl_nats if self.uniform_kl_nats > 0.0 else float("nan")


def infer_labels(probabilities: Float64, counts: Int64, proxy_labels: Int64 | None = None) -> LabelInference:
    """Guess a site's class distribution by its mean soft label.

    Args:
        probabilities: [n, classes] its soft labels on the proxy rows.
        counts: [classes] its own records of each class.
        proxy_labels: [n] where they are public: each class of proxy rows then counts alike, as in a balanced proxy;
            without them every row does, and the proxy must be balanced by itself.

    Raises:
        ValueError: no proxy row, no record, or shapes that do not fit.
    """
    if probabilities.ndim != 2 or not len(probabilities) or probabilities.shape[1:] != counts.shape:
        raise ValueError(
            f"probabilities are {list(probabilities.shape)} and counts {list(counts.shape)}: [n, classes] with at "
            "least one row, and [classes] expected"
        )
    if counts.sum() < 1 or (counts < 0).any():
        raise ValueError("the site has no record, so that there is no class distribution to infer")
    truth, guess = counts / counts.sum(), balanced_mean(probabilities, proxy_labels)
    uniform = np.full(len(truth), 1.0 / len(truth))
    return LabelInference(tuple(truth.tolist()), tuple(guess.tolist()), kl_nats(truth, guess), kl_nats(truth, uniform))


def balanced_mean(probabilities: Float64, labels: Int64 | None) -> Float64:
    """[classes] mean soft label, each class of rows counting alike where labels are given; sums to 1.

    >>> balanced_mean(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.array([0, 0, 1])).tolist()
    [0.5, 0.5]
    """
    if labels is None:
        mean: Float64 = probabilities.mean(axis=0)
    else:
        mean = np.mean([probabilities[labels == label].mean(axis=0) for label in np.unique(labels)], axis=0)
    shares: Float64 = mean / mean.sum()
    return shares


def kl_nats(truth: Float64, guess: Float64) -> float:
    """KL(truth, guess) in nats; a guess below 1e-6 counts as 1e-6.

    >>> round(kl_nats(np.array([1.0, 0.0]), np.array([0.5, 0.5])), 6)
    0.693147
    """
    there = truth > 0.0
    floored = np.maximum(guess, _FLOOR)
    return float(max(0.0, (truth[there] * np.log(truth[there] / (floored / floored.sum())[there])).sum()))
