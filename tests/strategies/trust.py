"""The rule of nine tenths, as a loop would have it."""

import numpy as np


def capped(weights):
    """[v] weights, 0 for who does not vote: of several none has more than nine tenths."""
    weights = np.array(weights, float)
    top = int(weights.argmax()) if len(weights) else 0
    others = sum(weight for voter, weight in enumerate(weights) if voter != top)
    if 0.0 < 9 * others < weights[top]:
        weights[top] = 9 * others
    return weights


def mean(votes, weights):
    """[C] mean of [v, C] votes."""
    return np.average(votes, axis=0, weights=capped(weights))
