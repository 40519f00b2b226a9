"""Per-sample weights: each site says how much its own data have to do with a row (FedAUX, Sattler et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from strategies.aggregator import Ballot, Outcome, State
from strategies.aggregators.pooling import log_of, mean_log_probs, mean_probabilities
from strategies.messages import ClientReport
from strategies.soft_labels import Float64, SoftLabels


@dataclass(frozen=True, slots=True)
class SampleWeighted:
    """y = softmax(sum_k s_k l_k / sum_k s_k), s_k(x) the score of client k on row x. Streams; lends its weights.

    Weights multiply scores. Where all scores are 0 they count alike. One of several sites has at most nine tenths of a
    row's scores, whatever it claims.

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
        if self.pool == "logits":
            logits = (pooled := mean_log_probs(ballot, reports, self)).mean
        else:
            logits = log_of((pooled := mean_probabilities(ballot, reports, self)).mean)
        return Outcome(SoftLabels.from_logits(pooled.rows, logits), state)
