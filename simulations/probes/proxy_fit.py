"""Before a run: does this proxy set suit these sites? One local training, one vote on everything, a plain verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillation.data import load_samples
from simulations.engines.in_process import WorkerPool
from simulations.prepared import Setup
from strategies.aggregator import voters_needed
from strategies.soft_labels import Float64, Int64

# The sites' own kind of rows (the test rows) are the yardstick: a proxy on which sites agree nearly as much as on those
# is one that they understand. Below the first bound of that ratio, or of the share of rows that are covered, a proxy
# set is doubtful, below the second unsuitable. The bounds are ours; tests show which proxies fall on which side.
AGREEMENT_BOUNDS = (0.9, 0.75)
CONFIDENCE_BOUNDS = (0.85, 0.6)
BALANCE_BOUNDS = (0.85, 0.6)
COVERED_BOUNDS = (0.5, 0.25)
# A yardstick must be one: of the way from chance (1 / C) to certainty the ensemble must go at least this far on the
# sites' own kind of rows, else a verdict is at best doubtful. Of ten classes that is 28% of a class found, of two 60%,
# and 0.145 or 0.525 for its likeliest class: where sites know two classes of ten each, 0.2 is all that there can be.
LEARNT_RECALL, LEARNT_CONFIDENCE = 0.2, 0.05
# Where more of the rows than this have one voter only, a verdict is at best doubtful.
MOST_ALONE = 0.5
VERDICTS = ("suitable", "doubtful", "unsuitable")


@dataclass(frozen=True, slots=True)
class Site:
    """What one site makes of the proxy set.

    Attributes:
        kept: share of the proxy rows that its selector keeps.
        agreement: share of the rows that it votes on, with enough others, on which its likeliest class is the
            ensemble's; None where there are no such rows.
        entropy_nats: mean of its votes there.
        test_entropy_nats: mean of its votes on the test rows.
    """

    site: str
    kept: float
    agreement: float | None
    entropy_nats: float | None
    test_entropy_nats: float


@dataclass(frozen=True, slots=True)
class Fit:
    """How a proxy set suits the sites of a study.

    With a client.selector, whatever is said of the ensemble on proxy rows is said of the votes that its sites cast, on
    the rows with enough of them; without such rows it is None. On test rows as many vote, and the same ones, as on
    proxy rows.

    Attributes:
        verdict: suitable, doubtful or unsuitable; the worst of its reasons.
        reasons: one sentence for each thing that was looked at.
        sites: by name.
        agreement, test_agreement: share of votes that say what the ensemble says, on proxy and on test rows.
        confidence, test_confidence: mean probability of the ensemble's likeliest class.
        entropy_nats, test_entropy_nats: mean entropy of the ensemble's vote, the mean of its voters'.
        balance, test_balance: entropy of the hard vote's class shares over ln C; 1 is even.
        covered: share of the proxy rows that a round which asks everybody can teach, because enough selectors keep
            them; without a client.selector all vote on all, and it is the share that at least one site's rows are like.
        class_shares: of the hard vote on proxy rows, by class name.
        accuracy: of the ensemble on the proxy rows, where those have labels.
        test_recall: mean over the classes of the share of their test rows that the ensemble finds.
    """

    verdict: str
    reasons: tuple[str, ...]
    sites: tuple[Site, ...]
    agreement: float | None
    test_agreement: float
    confidence: float | None
    test_confidence: float
    entropy_nats: float | None
    test_entropy_nats: float
    balance: float | None
    test_balance: float
    covered: float
    class_shares: Mapping[str, float]
    accuracy: float | None
    test_recall: float | None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def rows(self) -> list[dict[str, Any]]:
        """The sites, then the ensemble, with the same columns; it keeps what is covered."""
        ensemble = Site("ensemble", self.covered, self.agreement, self.entropy_nats, self.test_entropy_nats)
        return [asdict(site) for site in (*self.sites, ensemble)]


def measure(setup: Setup, pool: WorkerPool, labels: NDArray[np.int64] | None) -> Fit:
    """Train every site once on its own rows, let it vote on all proxy rows and on the test rows, and judge.

    Args:
        labels: [proxy rows] where they are public.
    """
    study, config = setup.study, setup.config
    shape = (study.proxy_rows + study.test_rows, len(study.classes))
    votes: dict[str, Float64] = {}
    kept: dict[str, NDArray[np.bool_]] = {}
    commands = [{"do": "proxy_fit", "site": name} for name in study.names]
    for command, header, blob in pool.answers(commands):
        size = int(header["votes_bytes"])
        log_probs = np.frombuffer(blob[:size], "<f4").reshape(shape)
        votes[command["site"]] = np.exp(log_probs, dtype=np.float64)
        kept[command["site"]] = np.frombuffer(blob[size:], np.uint8).astype(bool)
    names, test_labels = sorted(votes), load_samples(study.test).labels
    needed = 0 if config.client.selector is None else voters_needed(len(names), config.strategy.row_quorum)
    return judge(
        names,
        np.stack([votes[name][: study.proxy_rows] for name in names]),
        np.stack([votes[name][study.proxy_rows :] for name in names]),
        np.stack([kept[name] for name in names]),
        study.classes,
        labels,
        None if test_labels is None else test_labels.numpy(),
        needed,
    )


def judge(
    names: Sequence[str],
    proxy: Float64,
    test: Float64,
    kept: NDArray[np.bool_],
    classes: Sequence[str],
    labels: NDArray[np.int64] | None = None,
    test_labels: NDArray[np.int64] | None = None,
    needed: int = 0,
) -> Fit:
    """The verdict on votes.

    Args:
        proxy: [sites, n, classes] probabilities on proxy rows.
        test: [sites, m, classes] on rows of the sites' own kind.
        kept: [sites, n] what each site's selector keeps.
        labels, test_labels: [n] and [m] where they are known.
        needed: voters that a row needs, where sites vote on nothing but what they keep; 0: they vote on everything.
    """
    cast = kept if needed else np.ones_like(kept)
    taught = cast.sum(axis=0) >= max(1, needed)
    covered = float(taught.mean() if needed else kept.any(axis=0).mean())
    all_home = _pooled(test, np.ones(test.shape[:2], bool))
    recall = None if test_labels is None else _recall(all_home.hard, test_labels)
    pool, home = None, all_home
    if taught.any():
        pool = _pooled(proxy[:, taught], cast[:, taught])
        # Few voters agree with their mean more often than many: the yardstick has as many on each row.
        as_many = cast[:, taught][:, np.arange(test.shape[1]) % taught.sum()]
        home = replace(_pooled(test, as_many), balance=all_home.balance)
    shares = np.zeros(len(classes)) if pool is None else pool.shares
    hard = np.zeros(len(taught), np.int64)
    if pool is not None:
        hard[taught] = pool.hard
    found = [
        *([] if pool is None else _compared(pool, home, classes)),
        _coverage(covered, kept, needed),
        *([] if pool is None else _alone(cast[:, taught])),
        _learnt(all_home.confidence, recall, len(classes)),
    ]
    return Fit(
        VERDICTS[max(grade for grade, _ in found)],
        tuple(f"{VERDICTS[grade]}: {sentence}" for grade, sentence in found),
        _sites(names, proxy, test, kept, cast & taught, hard),
        None if pool is None else pool.agreement,
        home.agreement,
        None if pool is None else pool.confidence,
        home.confidence,
        None if pool is None else pool.entropy_nats,
        home.entropy_nats,
        None if pool is None else pool.balance,
        home.balance,
        covered,
        {name: float(share) for name, share in zip(classes, shares, strict=True)},
        None if labels is None or pool is None else float((hard == labels)[taught].mean()),
        recall,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    """The mean vote on some rows: see Fit; `hard` is its likeliest class by row, `shares` how often each is that."""

    agreement: float
    confidence: float
    entropy_nats: float
    balance: float
    shares: Float64
    hard: Int64


def _pooled(votes: Float64, cast: NDArray[np.bool_]) -> _Pool:
    """The mean of the votes that were cast.

    Args:
        votes: [sites, n, classes].
        cast: [sites, n] with at least one vote a row.
    """
    mean = (votes * cast[:, :, None]).sum(axis=0) / cast.sum(axis=0)[:, None]
    hard = mean.argmax(axis=1)
    shares = np.bincount(hard, minlength=votes.shape[2]) / len(hard)
    agreed = (votes.argmax(axis=2) == hard)[cast]
    entropy_nats = float(_entropies(mean).mean())
    balance = float(_entropies(shares) / np.log(len(shares)))
    return _Pool(float(agreed.mean()), float(mean.max(axis=1).mean()), entropy_nats, balance, shares, hard)


def _entropies(probabilities: Float64) -> Float64:
    """[...] nats of [..., classes]."""
    entropies: Float64 = (probabilities * -np.log(np.maximum(probabilities, 1e-12))).sum(axis=-1)
    return entropies


def _recall(hard: Int64, labels: NDArray[np.int64]) -> float:
    """Mean over the classes that there are: a vote for the largest class alone is at chance, however large that is."""
    return float(np.mean([(hard[labels == label] == label).mean() for label in np.unique(labels)]))


def _sites(
    names: Sequence[str],
    proxy: Float64,
    test: Float64,
    kept: NDArray[np.bool_],
    heard: NDArray[np.bool_],
    hard: Int64,
) -> tuple[Site, ...]:
    """What each makes of the proxy set; `heard` are the votes that count, `hard` is what the ensemble says there."""
    entropies, test_entropies = _entropies(proxy), _entropies(test).mean(axis=1)
    agreed = proxy.argmax(axis=2) == hard
    return tuple(
        Site(
            name,
            float(kept[index].mean()),
            float(agreed[index, heard[index]].mean()) if heard[index].any() else None,
            float(entropies[index, heard[index]].mean()) if heard[index].any() else None,
            float(test_entropies[index]),
        )
        for index, name in enumerate(names)
    )


def _compared(pool: _Pool, home: _Pool, classes: Sequence[str]) -> list[tuple[int, str]]:
    """Proxy rows against the sites' own kind of rows."""
    never = [name for name, share in zip(classes, pool.shares, strict=True) if share == 0.0]
    return [
        _graded(
            pool.agreement / max(home.agreement, 1e-9),
            AGREEMENT_BOUNDS,
            f"on proxy rows {pool.agreement:.0%} of the voters say what the ensemble says, on the sites' own kind of "
            f"rows {home.agreement:.0%}",
        ),
        _graded(
            pool.confidence / max(home.confidence, 1e-9),
            CONFIDENCE_BOUNDS,
            f"the ensemble gives its likeliest class {pool.confidence:.2f} on proxy rows and {home.confidence:.2f} on "
            f"the sites' own kind; its entropy is {pool.entropy_nats:.2f} and {home.entropy_nats:.2f} nats",
        ),
        _graded(
            pool.balance / home.balance if home.balance > 0.0 else 1.0,  # one class alone at home: see _learnt
            BALANCE_BOUNDS,
            f"the hard vote has {pool.balance:.0%} of an even spread over the classes, on the sites' own kind of rows "
            f"{home.balance:.0%}" + (f"; never voted for: {', '.join(never[:10])}" if never else ""),
        ),
    ]


def _coverage(covered: float, kept: NDArray[np.bool_], needed: int) -> tuple[int, str]:
    """Whether the rows are enough: those that a round can teach, or those that are like somebody's."""
    typical = f"half of the sites keep at most {np.median(kept.mean(axis=1)):.0%}"
    if not needed:
        sentence = f"{covered:.0%} of the proxy rows are like those of some site, by its selector; {typical}"
    else:
        voters = f"{needed} voter{'s' * (needed > 1)} that a row needs"
        sentence = f"{covered:.0%} of the proxy rows have the {voters} (strategy.row_quorum); {typical}"
    return _graded(covered, COVERED_BOUNDS, sentence)


def _alone(cast: NDArray[np.bool_]) -> list[tuple[int, str]]:
    """Whether anybody could contradict a vote on the [sites, n] rows that are taught: one alone agrees with itself."""
    alone = float((cast.sum(axis=0) == 1).mean())
    if len(cast) < 2 or alone <= MOST_ALONE:
        return []
    return [(1, f"{alone:.0%} of these rows have one voter: whether others would say the same cannot be seen")]


def _learnt(confidence: float, recall: float | None, classes: int) -> tuple[int, str]:
    """Whether the yardstick is one; if not, nothing that it says is better than doubtful."""
    chance = 1.0 / classes
    little = (confidence - chance) / (1.0 - chance) < LEARNT_CONFIDENCE
    sentence = f"on the sites' own kind of rows the ensemble gives its likeliest class {confidence:.2f}"
    if recall is not None:
        little = little or (recall - chance) / (1.0 - chance) < LEARNT_RECALL
        sentence += f" and finds {recall:.0%} of a class"
    sentence += f", where chance is {chance:.2f}"
    if little:
        sentence += ": one local training teaches too little to tell; raise client.local_epochs or client.lr"
    return int(little), sentence


def _graded(value: float, bounds: tuple[float, float], sentence: str) -> tuple[int, str]:
    """0, 1 or 2, with the sentence: below the first bound it is doubtful, below the second unsuitable."""
    return sum(value < bound for bound in bounds), sentence
