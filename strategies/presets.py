"""Published methods as sets of parts. A preset fills in what a configuration leaves out; it never overrides it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# What every method here works with unless its preset says why not: see Preset.refuses. The first three are
# seen in a configuration, which is then refused. Who joins late is not known before it happens: there the sentence is
# for people, and the newcomer is not asked.
CAPABILITIES = ("partial participation", "async", "different models", "late joiners")


@dataclass(frozen=True)
class Preset:
    """Defaults of one method, by section of the configuration.

    Attributes:
        source: the paper.
        idea: what it does, in one sentence.
        differs: where our form differs from the paper's, if it does.
        strategy, client, student, federation: keys of these sections.
        refuses: of CAPABILITIES, what cannot be combined with it, and why.
    """

    source: str
    idea: str
    strategy: Mapping[str, Any]
    differs: str = ""
    client: Mapping[str, Any] = field(default_factory=dict)
    student: Mapping[str, Any] = field(default_factory=dict)
    federation: Mapping[str, Any] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    "mean": Preset(
        source="Lin et al. 2020, arXiv 2006.07242 (avg_probs), labels only",
        idea="The linear pool of all votes, nothing else.",
        strategy={"aggregator": {"name": "mean"}},
    ),
    "guarded": Preset(
        source="ours",
        idea="The default of deployments, chosen by `consilium bench robustness`: who points away from all is dropped.",
        strategy={
            "aggregator": {
                "name": "cosine-filter",
                "weight": {"name": "entropy", "cap": 0.2},
                "then": {"name": "enhanced-era", "exponent": 2.0},
            }
        },
    ),
    "experts": Preset(
        source="ours, after FedAUX's trust by row (Sattler et al. 2021, arXiv 2102.02514) and EdgeFD's ratio",
        idea="Every vote weighs by how much its row is like the site's own rows: who knows a class teaches it.",
        strategy={"aggregator": {"name": "sample-weighted", "pool": "probabilities"}, "row_quorum": 1},
        client={"selector": {"name": "kmeans-ratio", "clusters": 200, "quantile": 0.0}},
        student={"distil_epochs": 5},
        differs="scores by k-means distance ratios instead of a noised logistic regression; they are not private",
    ),
    "ds-fl": Preset(
        source="Itahara et al. 2020, arXiv 2008.06180",
        idea="Digest the last teacher, revisit private rows, vote; the teacher is ERA of the mean vote.",
        strategy={"aggregator": {"name": "era", "temperature": 0.1}},
    ),
    # Four phases: transfer learning on the labelled public set, then on private data, once (1); votes and the
    # consensus of logits (2); digest it with the mean absolute error of centred logits (3); revisit (4).
    "fedmd": Preset(
        source="Li and Wang 2019, arXiv 1910.03581",
        idea="Learn the labelled public set first; then agree on the mean of logits and learn it by its values.",
        strategy={"aggregator": {"name": "logit-mean"}},
        client={"distil_loss": "mae", "public_epochs": 20, "warmup_epochs": 25},
        student={"distil_loss": "mae"},
        differs="fixed numbers of first epochs instead of early stopping on the private test set; the configuration's "
        "optimiser instead of Adam at 0.001",
    ),
    "scarlet": Preset(
        source="Azuma et al. 2025, arXiv 2504.19602",
        idea="DS-FL with a cache: a label younger than 50 rounds is used again and not asked; sharpened by a power.",
        strategy={"aggregator": {"name": "enhanced-era", "exponent": 2.0}, "cache_rounds": 50},
        differs="an expired label is refreshed, never blanked; absent clients get the difference",
    ),
    "cfd": Preset(
        source="Sattler et al. 2022, doi 10.1109/TNSE.2021.3081748",
        idea="One bit a label up, differences only, entropy coded, on one fixed subset; the student's answers go down.",
        strategy={
            "aggregator": {"name": "mean"},
            "uplink": "quantised:1+delta+entropy",
            "downlink": "quantised:1+delta+entropy",
            "choice": "fixed",
        },
        student={"speaks": True},
        differs="clients keep their models between rounds; client.restart = true gives the paper's stateless clients; "
        "the configuration's optimiser instead of Adam at 0.001",
    ),
    "selective-fd": Preset(
        source="Shao, Wu, Zhang 2024, arXiv 2304.01731",
        idea="A client votes only on rows like its own (KuLSIF density ratio); ambiguous rows are dropped.",
        strategy={"aggregator": {"name": "mean", "ambiguity": 1.0}, "row_quorum": 1},
        client={"selector": {"name": "kulsif", "quantile": 0.25}},
        differs="whole rounds instead of single steps; auxiliary points in the box of the proxy rows",
    ),
    "feddistill": Preset(
        source="Jeong et al. 2018, arXiv 1811.11479",
        idea="No proxy rows: mean outputs by class go up, everybody gets the mean of the others' down.",
        strategy={"aggregator": {"name": "per-class"}, "row_quorum": 2},
        client={"table_weight": 1.0},
        student={"distil_epochs": 0},
        differs="tables are made after the round's training, not during it; there is no student to train",
    ),
    "cronus": Preset(
        source="Chang et al. 2019, arXiv 1912.11279",
        idea="A robust mean: who stands out along the main direction of disagreement is dropped, in two passes.",
        strategy={"aggregator": {"name": "cronus"}},
        differs="private and proxy rows are learnt one after the other, not together",
    ),
    "fed-et": Preset(
        source="Cho et al. 2022, arXiv 2204.12703",
        idea="Votes weigh by the variance of their logits: small models of different kinds teach a larger student.",
        strategy={"aggregator": {"name": "variance"}},
        differs="the student learns the pool itself; the paper's term for disagreeing clients is left out",
    ),
    "one-shot": Preset(
        source="Li, He, Song 2021, arXiv 2010.01017 (FedKT), labels only",
        idea="One round: every client trains to its end and casts one hard vote a row; the student learns the winners.",
        strategy={
            "aggregator": {"name": "hard-vote", "soft": False},
            "uplink": "quantised:1+entropy",
            "choice": "fixed",
        },
        federation={"rounds": 1, "rows_per_round": 1_000_000},
        client={"local_epochs": 100},
        student={"distil_epochs": 100},
        differs="one model a client instead of two committees of five",
        refuses={
            "async": "there is no later round in which a late vote could count",
            "late joiners": "there is no later round that could ask them",
        },
    ),
    "comet": Preset(
        source="Cho et al., COMET (read through SCARLET's re-implementation)",
        idea="Two teachers a row, the centres of the votes' two clusters; a client learns the one nearer to its vote.",
        strategy={"aggregator": {"name": "clustered"}},
        differs="a cluster of one voter is replaced by the mean: it would publish that client's vote",
    ),
    "expguard": Preset(
        source="Roux, Zimmer, Pokutta 2025, arXiv 2402.12265",
        idea="A client's weight falls, over all rounds, with the distance of its votes from a robust centre.",
        strategy={"aggregator": {"name": "expguard"}},
        differs="the teacher goes down, not a model; a round shares trust out anew among those present: absence gains "
        "nothing",
    ),
}
