"""What (epsilon, delta) allows an attack, and what an attack's rates refute.

Kairouz, Oh and Viswanath (2015): TPR <= min(e^eps FPR + delta, 1 - e^-eps (1 - delta - FPR)). Design reference 8.3.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privacy.audit.roc import Roc, clopper_pearson

Float64 = NDArray[np.float64]

SIGNIFICANCE = 0.05


def most_true_positives(false_positives: ArrayLike, epsilon: float, delta: float) -> Float64:
    """The share of members that any attack on an (epsilon, delta)-DP release can find.

    Args:
        false_positives: [...] at this share of false alarms.

    Raises:
        ValueError: a negative epsilon, or a delta outside [0, 1].

    >>> [round(float(most_true_positives(0.01, epsilon, 1e-5)), 4) for epsilon in (1.0, 3.0, 8.0)]
    [0.0272, 0.2009, 0.9997]
    """
    _check(epsilon, delta)
    alarms = np.asarray(false_positives, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        few = np.where(alarms == 0.0, 0.0, np.exp(epsilon) * alarms) + delta
    bound: Float64 = np.clip(np.minimum(few, 1.0 - np.exp(-epsilon) * (1.0 - delta - alarms)), 0.0, 1.0)
    return bound


def epsilon_lower_bound(curve: Roc, delta: float, significance: float = SIGNIFICANCE) -> float:
    """The largest epsilon that some threshold of an attack refutes; 0 where none is.

    Every threshold is looked at: at each, Clopper-Pearson bounds of both rates that are all right together with a
    probability of at least 1 - significance, because each may err with significance / (2 thresholds).

    Args:
        curve: of guesses on records that a fair coin each made members or not.

    Guarantees:
        The claim (epsilon, delta) stands at every threshold, within Clopper-Pearson error, if and only if the result is
        at most epsilon.

    Raises:
        ValueError: a delta outside [0, 1].
    """
    _check(0.0, delta)
    hits, alarms = curve.hits[1:-1], curve.alarms[1:-1]  # calling nobody or everybody a member shows nothing
    if not len(hits):
        return 0.0
    each = significance / (2.0 * len(hits))
    found = clopper_pearson(hits, curve.members, each)[0]
    raised = clopper_pearson(alarms, curve.strangers, each)[1]
    with np.errstate(divide="ignore"):
        few = np.log(np.maximum(found - delta, 0.0)) - np.log(raised)
        many = np.log(np.maximum(1.0 - delta - raised, 0.0)) - np.log(1.0 - found)
    return float(max(0.0, few.max(), many.max()))


def _check(epsilon: float, delta: float) -> None:
    if not epsilon >= 0.0:
        raise ValueError(f"epsilon={epsilon} must be 0 or more")
    if not 0.0 <= delta <= 1.0:
        raise ValueError(f"delta={delta} must be in [0, 1]")
