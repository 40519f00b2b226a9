"""Membership attacks: from what models say of a record to how much it looks trained on.

Loss threshold: Yeom et al. (2018). LiRA, online and offline: Carlini et al. (2022), arXiv 2112.03570. RMIA: Zarifzadeh,
Liu and Shokri (2024), arXiv 2312.03262. Design reference 8.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

# Probabilities closer to 0 or 1 are rounding more than knowledge.
_CLIP = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class References:
    """Models that the attacker trained itself, and so knows what each was trained on.

    Attributes:
        scores: [models, n] phi of every record, see logit_scores.
        taken: [models, n] whether the model was trained on it.

    Raises:
        ValueError: shapes that do not fit, no model, or a score that is not finite.
    """

    scores: Float64
    taken: Bool

    def __post_init__(self) -> None:
        if self.scores.ndim != 2 or self.scores.shape != self.taken.shape or not self.scores.size:
            raise ValueError(
                f"scores are {list(self.scores.shape)} and taken {list(self.taken.shape)}: [models, n] of both expected"
            )
        if not np.isfinite(self.scores).all():
            raise ValueError("a score is not finite: a model has diverged, lower its step size")


# From the attacked model's scores [n] and the references to a number a record, higher where it looks trained on.
Attack = Callable[[Float64, References], Float64]


def logit_scores(log_probs: NDArray[np.floating], labels: Int64) -> Float64:
    """phi = ln(p_y / (1 - p_y)) of each record's own label, p_y clipped to [1e-6, 1 - 1e-6].

    Args:
        log_probs: [..., n, classes] natural log.
        labels: [n].

    Returns:
        [..., n] nats, from -13.8 to 13.8.

    >>> logit_scores(np.log([[0.75, 0.25], [0.75, 0.25]]), np.array([0, 1])).round(4).tolist()
    [1.0986, -1.0986]
    """
    own = np.exp(np.asarray(log_probs, np.float64)[..., np.arange(len(labels)), labels]).clip(_CLIP, 1.0 - _CLIP)
    scores: Float64 = np.log(own) - np.log1p(-own)
    return scores


def loss_threshold(scores: Float64, references: References) -> Float64:
    """phi itself: a record that the model is sure of looks trained on. Needs no reference."""
    return scores


def lira_online(scores: Float64, references: References) -> Float64:
    """ln N(phi; mu_in, v_in) - ln N(phi; mu_out, v_out), means by record, variances pooled over records.

    Raises:
        ValueError: a record that all references know, or none; or references without any spread.
    """
    mu_in, v_in = _moments(references.scores, references.taken, "trained on it")
    mu_out, v_out = _moments(references.scores, ~references.taken, "not trained on it")
    ratio: Float64 = 0.5 * (
        (scores - mu_out) ** 2 / v_out + np.log(v_out) - (scores - mu_in) ** 2 / v_in - np.log(v_in)
    )
    return ratio


def lira_offline(scores: Float64, references: References) -> Float64:
    """(phi - mu_out) / sd_out by record: the normal quantile of LiRA's Phi of it, which orders records alike.

    Phi itself is 1 for all that is above 8.3, and would tie the surest guesses.

    Raises:
        ValueError: a record that all references know, or references without any spread.
    """
    mu_out, v_out = _moments(references.scores, ~references.taken, "not trained on it")
    standard: Float64 = (scores - mu_out) / np.sqrt(v_out)
    return standard


def rmia(scores: Float64, references: References) -> Float64:
    """Share of the records z with [p(x) / pbar(x)] / [p(z) / pbar(z)] >= 1, pbar the mean over the references.

    The population that a record is compared with is the pool itself: all its records but x.

    Raises:
        ValueError: fewer than two records.
    """
    if len(scores) < 2:
        raise ValueError(f"RMIA compares records with each other, and there are {len(scores)}: take at least 2")
    ratios = log_expit(scores) - np.log(expit(references.scores).mean(axis=0))
    beaten = np.searchsorted(np.sort(ratios), ratios, side="right") - 1  # a record does not beat itself
    share: Float64 = beaten / (len(ratios) - 1)
    return share


ATTACKS: Mapping[str, Attack] = {
    "loss": loss_threshold,
    "lira": lira_online,
    "lira-offline": lira_offline,
    "rmia": rmia,
}


def halves(models: int, records: int, rng: np.random.Generator) -> Bool:
    """[models, records] who is trained on what: models 2k and 2k + 1 share the records between them by lot.

    Raises:
        ValueError: an odd number of models, fewer than 6, or fewer than 2 records.

    Guarantees:
        Half of the models know each record. Who leaves out a model and its complement leaves out one on each side.
    """
    if models < 6 or models % 2:
        raise ValueError(f"shadows={models} must be even and at least 6: two know each record beside the attacked pair")
    if records < 2:
        raise ValueError(f"the pool has {records} rows: at least 2 are needed, one to train on and one to leave out")
    taken = np.zeros((models, records), bool)
    for pair in range(0, models, 2):
        taken[pair, rng.permutation(records)[: records // 2]] = True
        taken[pair + 1] = ~taken[pair]
    return taken


def each_in_turn(attack: Attack, scores: Float64, taken: Bool) -> Float64:
    """Every model attacked once, the others as its references.

    Its complement, if there is one, is left out with it: else a record's references would be fewer on the side on which
    it stands, and the attacker would know something that no attacker knows.

    Args:
        scores: [models, n] phi.
        taken: [models, n] who was trained on what.

    Returns:
        [models, n] what the attack says of each record of each model.

    Raises:
        ValueError: as the attack.
    """
    found = []
    for target in range(len(scores)):
        others = [
            index for index in range(len(scores)) if index != target and (taken[index] == taken[target]).any()
        ]  # equal somewhere: no complement
        found.append(attack(scores[target], References(scores[others], taken[others])))
    return np.stack(found)


def _moments(scores: Float64, chosen: Bool, which: str) -> tuple[Float64, float]:
    """[n] mean of the chosen models by record, and their variance around it, pooled over records."""
    counts = chosen.sum(axis=0)
    if not counts.all():
        raise ValueError(
            f"record {int(counts.argmin())} has no reference that was {which}: train more references, or deal the "
            "records out evenly"
        )
    means: Float64 = (scores * chosen).sum(axis=0) / counts
    spread, free = float((((scores - means) ** 2) * chosen).sum()), int(counts.sum() - len(counts))
    if not (free > 0 and spread > 0.0):
        raise ValueError(f"the references {which} have no spread: at least two for some record, and not all equal")
    return means, spread / free
