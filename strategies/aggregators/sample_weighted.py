"""Per-sample weights: each site says how much its own data have to do with a row (FedAUX, Sattler et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from strategies.aggregator import Ballot, Outcome, State, Weighting
from strategies.aggregators.pooling import log_of, mean_log_probs, mean_probabilities, trust_of
from strategies.exact_sum import WideOrderFreeSum
from strategies.messages import ClientReport
from strategies.soft_labels import Float64, SoftLabels


@dataclass(frozen=True, slots=True)
class SampleWeighted:
    """y = softmax(sum_k s_k l_k / sum_k s_k), s_k(x) the score of client k on row x. Streams; lends its weights.

    A row whose effective voters (sum s)^2 / sum s^2 are fewer than the ballot needs is left out: four votes of which
    one has all the trust are one vote. (Unequal scores always make fewer effective voters than heads: where all sites
    are needed, as with two of them, ask for fewer by `row_quorum`.) Weights multiply scores and count in the effective
    voters. Where all scores are 0 they count alike. Lent to another rule the scores only weigh: its quorum counts
    heads.

    Attributes:
        pool: `logits` pools log-probabilities floored at ln 1e-7 (FedAUX), `probabilities` probabilities.
    """

    pool: Literal["logits", "probabilities"] = "logits"

    needs: ClassVar[tuple[str, ...]] = ("scores",)

    def __post_init__(self) -> None:
        if self.pool not in ("logits", "probabilities"):
            raise ValueError(f"pool={self.pool!r} must be 'logits' or 'probabilities'")

    def weights(self, report: ClientReport) -> Float64:
        if report.scores is None:
            raise ValueError(f"client {report.client!r} sent no scores: the plan has to ask for them")
        return report.scores

    def aggregate(self, state: State, ballot: Ballot, reports: Iterable[ClientReport]) -> Outcome:
        voters = _EffectiveVoters(ballot, self)
        heard = voters.listen(reports)
        if self.pool == "logits":
            pooled = mean_log_probs(ballot, heard, self)
            logits = pooled.mean
        else:
            pooled = mean_probabilities(ballot, heard, self)
            logits = log_of(pooled.mean)
        # Nine digits: three equal scores make three voters, not 2.9999999999999996.
        enough = np.round(voters.value()[pooled.kept], 9) >= ballot.needed
        return Outcome(SoftLabels.from_logits(pooled.rows[enough], logits[enough]), state)


class _EffectiveVoters:
    """Listens to reports while they are pooled: (sum s)^2 / sum s^2 on each row (Kish's effective sample size)."""

    def __init__(self, ballot: Ballot, weighting: Weighting) -> None:
        self._ballot, self._weighting = ballot, weighting
        self._moments = WideOrderFreeSum((len(ballot.rows), 2), 2.0)  # of s and of s^2

    def listen(self, reports: Iterable[ClientReport]) -> Iterator[ClientReport]:
        """The same reports, one at a time."""
        for report in reports:
            trust = np.full(len(report.soft_labels.rows), trust_of(report, self._weighting))
            moments = np.stack([trust, trust * trust], axis=1)
            self._moments.add(moments, self._ballot.positions(report), vouched=True)
            yield report

    def value(self) -> Float64:
        """[n] for the ballot's rows; 0 where nobody voted."""
        scores, squares = self._moments.value().T
        return np.where(squares > 0.0, scores**2 / np.where(squares > 0.0, squares, 1.0), 0.0)
