"""Before a run: does this proxy set suit these sites? One local training, one vote on everything, a plain verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulations.engines.in_process import WorkerPool
from simulations.prepared import Setup
from strategies.soft_labels import Float64

# The sites' own kind of rows (the test rows) are the yardstick: a proxy on which sites agree nearly as much as on those
# is one that they understand. Below the first bound of that ratio, or of the share that anybody keeps, a proxy set is
# doubtful, below the second unsuitable. The bounds are ours; tests show which proxies fall on which side.
AGREEMENT_BOUNDS = (0.9, 0.75)
CONFIDENCE_BOUNDS = (0.85, 0.6)
BALANCE_BOUNDS = (0.85, 0.6)
COVERED_BOUNDS = (0.5, 0.25)
VERDICTS = ("suitable", "doubtful", "unsuitable")


@dataclass(frozen=True, slots=True)
class Site:
    """What one site makes of the proxy set.

    Attributes:
        kept: share of the proxy rows that its selector keeps.
        agreement: share of the proxy rows on which its likeliest class is the ensemble's.
        entropy_nats: mean of its votes there.
    """

    site: str
    kept: float
    agreement: float
    entropy_nats: float


@dataclass(frozen=True, slots=True)
class Fit:
    """How a proxy set suits the sites of a study.

    Attributes:
        verdict: suitable, doubtful or unsuitable; the worst of its reasons.
        reasons: one sentence for each thing that was looked at.
        sites: by name.
        agreement, test_agreement: mean share of voters who say what the ensemble says, on proxy and on test rows.
        confidence, test_confidence: mean probability of the ensemble's likeliest class.
        balance, test_balance: entropy of the hard vote's class shares over ln C; 1 is even.
        covered: share of the proxy rows that the selector of at least one site keeps.
        class_shares: of the hard vote on proxy rows, by class name.
        accuracy: of the ensemble on the proxy rows, where those have labels.
    """

    verdict: str
    reasons: tuple[str, ...]
    sites: tuple[Site, ...]
    agreement: float
    test_agreement: float
    confidence: float
    test_confidence: float
    balance: float
    test_balance: float
    covered: float
    class_shares: Mapping[str, float]
    accuracy: float | None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def measure(setup: Setup, pool: WorkerPool, labels: NDArray[np.int64] | None) -> Fit:
    """Train every site once on its own rows, let it vote on all proxy rows and on the test rows, and judge.

    Args:
        labels: [proxy rows] where they are public.
    """
    classes = len(setup.study.classes)
    shape = (setup.study.proxy_rows + setup.study.test_rows, classes)
    votes: dict[str, Float64] = {}
    kept: dict[str, NDArray[np.bool_]] = {}
    commands = [{"do": "proxy_fit", "site": name} for name in setup.study.names]
    for command, header, blob in pool.answers(commands):
        size = int(header["votes_bytes"])
        log_probs = np.frombuffer(blob[:size], "<f4").reshape(shape)
        votes[command["site"]] = np.exp(log_probs, dtype=np.float64)
        kept[command["site"]] = np.frombuffer(blob[size:], np.uint8).astype(bool)
    names = sorted(votes)
    return judge(
        names,
        np.stack([votes[name][: setup.study.proxy_rows] for name in names]),
        np.stack([votes[name][setup.study.proxy_rows :] for name in names]),
        np.stack([kept[name] for name in names]),
        setup.study.classes,
        labels,
    )


def judge(
    names: Sequence[str],
    proxy: Float64,
    test: Float64,
    kept: NDArray[np.bool_],
    classes: Sequence[str],
    labels: NDArray[np.int64] | None = None,
) -> Fit:
    """The verdict on votes.

    Args:
        proxy: [sites, n, classes] probabilities on proxy rows.
        test: [sites, m, classes] on rows of the sites' own kind.
        kept: [sites, n] what each site's selector keeps.
        labels: [n] where they are known.
    """
    agreement, confidence, hard = _ensemble(proxy)
    test_agreement, test_confidence, test_hard = _ensemble(test)
    shares, test_shares = (np.bincount(votes, minlength=len(classes)) / len(votes) for votes in (hard, test_hard))
    balance, test_balance = _balance(shares), _balance(test_shares)
    never = [name for name, share in zip(classes, shares, strict=True) if share == 0.0]
    covered = float(kept.any(axis=0).mean())
    found = [
        _graded(
            agreement / max(test_agreement, 1e-9),
            AGREEMENT_BOUNDS,
            f"on proxy rows {agreement:.0%} of the voters say what the ensemble says, on the sites' own kind of rows "
            f"{test_agreement:.0%}",
        ),
        _graded(
            confidence / max(test_confidence, 1e-9),
            CONFIDENCE_BOUNDS,
            f"the ensemble gives its likeliest class {confidence:.2f} on proxy rows and {test_confidence:.2f} on the "
            "sites' own kind",
        ),
        _graded(
            balance / max(test_balance, 1e-9),
            BALANCE_BOUNDS,
            f"the hard vote has {balance:.0%} of an even spread over the classes, on the sites' own kind of rows "
            f"{test_balance:.0%}" + (f"; never voted for: {', '.join(never[:10])}" if never else ""),
        ),
        _graded(
            covered,
            COVERED_BOUNDS,
            f"{covered:.0%} of the proxy rows are like those of some site, by its selector; half of the sites keep at "
            f"most {np.median(kept.mean(axis=1)):.0%}",
        ),
    ]
    entropies = -(proxy * np.log(np.maximum(proxy, 1e-12))).sum(axis=2).mean(axis=1)
    return Fit(
        VERDICTS[max(grade for grade, _ in found)],
        tuple(f"{VERDICTS[grade]}: {sentence}" for grade, sentence in found),
        tuple(
            Site(
                name,
                float(kept[index].mean()),
                float((proxy[index].argmax(axis=1) == hard).mean()),
                float(entropies[index]),
            )
            for index, name in enumerate(names)
        ),
        agreement,
        test_agreement,
        confidence,
        test_confidence,
        balance,
        test_balance,
        covered,
        {name: float(share) for name, share in zip(classes, shares, strict=True)},
        None if labels is None else float((hard == labels).mean()),
    )


def _ensemble(votes: Float64) -> tuple[float, float, NDArray[np.int64]]:
    """Share of voters who agree with the mean vote, its mean confidence, and its likeliest class by row."""
    mean = votes.mean(axis=0)
    hard = mean.argmax(axis=1)
    return float((votes.argmax(axis=2) == hard).mean()), float(mean.max(axis=1).mean()), hard


def _balance(shares: Float64) -> float:
    """Entropy of class shares over ln C."""
    some = shares[shares > 0]
    return float((some * np.log(1.0 / some)).sum() / np.log(len(shares)))


def _graded(value: float, bounds: tuple[float, float], sentence: str) -> tuple[int, str]:
    """0, 1 or 2, with the sentence: below the first bound it is doubtful, below the second unsuitable."""
    return sum(value < bound for bound in bounds), sentence
