"""A mechanism run many times on two neighbours: how large must its epsilon be, at 95 % confidence?

The answer is a lower bound. From n runs each it cannot exceed about ln(n/4.6) without an assumption, so that a claim
above that cannot be refuted, and a passed audit proves nothing. Measured at epsilon 1: the sensitivity of a row in the
place of a matrix's is found with 1,000 runs, half the noise with 1,000 in 9 of 10 audits, a forgotten sqrt(2) with
10,000, 10 % less noise with 100,000; a sound mechanism was flagged in 3 of 1,000 audits of 1,000 runs each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import stats

from privacy.accounting import analytic_gaussian_epsilon
from privacy.audit.record_replay import Recorder
from privacy.audit.roc import clopper_pearson
from privacy.mechanisms.mechanism import Float64, Noise

Data = TypeVar("Data")
_THRESHOLDS = 200
_LEAST_RUNS = 100
# One run in five chooses where to cut; the more are counted, the tighter the bound.
_CHOOSING = 5
# Of each of the two rates: 95 % for both together.
_TAIL = 0.025


@dataclass(frozen=True, slots=True)
class MechanismAudit:
    """Lower bounds, each at 95 % confidence on its own.

    Attributes:
        runs: on each of the two data sets; a fifth of them chose where to cut.
        delta: of the claim.
        epsilon: without any assumption: ln((TPR_low - delta)/FPR_high).
        mu: largest sensitivity over noise that the runs show, if noise is normal: PhiInv(TPR_low) - PhiInv(FPR_high).
        gaussian_epsilon: that of a Gaussian mechanism with this mu; 2 to 4 times tighter.
    """

    runs: int
    delta: float
    epsilon: float
    mu: float
    gaussian_epsilon: float

    def refutes(self, claimed: float) -> bool:
        """Whether a claimed epsilon at this delta is too small."""
        return max(self.epsilon, self.gaussian_epsilon) > claimed


def noised(run: Callable[[Data, Noise], object], data: Data, times: int, noise: Noise) -> Float64:
    """What all primitives answer in `times` releases, before it is clipped or projected.

    Returns:
        [times, values], each release's noised values in one row.
    """
    rows = []
    for _ in range(times):
        recorder = Recorder(noise)
        run(data, recorder)
        rows.append(np.concatenate([call.released.ravel().astype(np.float64) for call in recorder.calls]))
    return np.stack(rows)


def audit_mechanism(first: Float64, second: Float64, direction: Float64, delta: float) -> MechanismAudit:
    """Bound epsilon from below by telling the two apart.

    Args:
        first: [runs, values] releases on a data set.
        second: [runs, values] releases on its neighbour.
        direction: [values] f(first) - f(second), the un-noised difference, or anything else.
        delta: of the claim.

    Raises:
        ValueError: shapes that do not fit, fewer than 100 runs, a delta outside (0, 1).
    """
    if first.shape != second.shape or first.shape[1:] != direction.shape or len(first) < _LEAST_RUNS:
        raise ValueError(
            f"first {list(first.shape)}, second {list(second.shape)}, direction {list(direction.shape)}: "
            f"[runs, values] twice with {_LEAST_RUNS} runs or more, and [values] expected"
        )
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta={delta} must be in (0, 1)")
    scores = first @ direction, second @ direction
    chosen = np.arange(len(first)) % _CHOOSING == 0
    one, other = (told[chosen] for told in scores)
    cuts = np.quantile(np.concatenate([one, other]), np.linspace(0.0, 1.0, _THRESHOLDS))
    best = cuts[int(_bounds(one, other, cuts, delta)[0].argmax())]
    # Of two equal normal laws the middle tells most, however far apart they are.
    middle = (one.mean() + other.mean()) / 2.0
    by_ratio, by_shape = _bounds(scores[0][~chosen], scores[1][~chosen], np.array([best, middle]), delta)
    mu = max(0.0, float(by_shape[1]))
    gaussian = analytic_gaussian_epsilon(1.0 / mu, delta) if mu > 0.0 else 0.0
    return MechanismAudit(len(first), delta, max(0.0, float(by_ratio[0])), mu, gaussian)


def _bounds(first: Float64, second: Float64, cuts: Float64, delta: float) -> tuple[Float64, Float64]:
    """[cuts] lower bounds on epsilon and on mu, from guessing "first" where the score is above a cut.

    On the neighbours the other way round "second" below the cut bounds epsilon as well; the larger one is taken, both
    from the same two Clopper-Pearson intervals.
    """
    right, wrong = (_above(scores, cuts) for scores in (first, second))
    tpr_low, fpr_high = clopper_pearson(right, len(first), _TAIL)[0], clopper_pearson(wrong, len(second), _TAIL)[1]
    above = np.log(np.maximum(tpr_low - delta, 1e-300) / fpr_high)
    below = np.log(np.maximum(1.0 - fpr_high - delta, 1e-300) / (1.0 - tpr_low))
    return np.maximum(above, below), stats.norm.ppf(tpr_low) - stats.norm.ppf(fpr_high)


def _above(scores: Float64, cuts: Float64) -> Float64:
    counts: Float64 = (len(scores) - np.searchsorted(np.sort(scores), cuts, side="right")).astype(np.float64)
    return counts
