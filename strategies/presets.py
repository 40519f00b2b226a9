"""Published methods as sets of parts. A preset fills in what a configuration leaves out; it never overrides it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Defaults of one method, by section of the configuration."""

    source: str
    strategy: Mapping[str, Any]
    client: Mapping[str, Any] = field(default_factory=dict)
    student: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    # Digest the last teacher, revisit private data, vote; the teacher is ERA of the mean vote.
    "ds-fl": Preset(
        source="Itahara et al. 2020, arXiv 2008.06180",
        strategy={"aggregator": {"name": "era", "temperature": 0.1}, "codec": "float32"},
        client={"distil_loss": "kl"},
        student={"distil_loss": "kl"},
    ),
    # Four phases: transfer learning on the labelled public set, then on private data, once (1); votes and the
    # consensus of logits (2); digest it with the mean absolute error of centred logits (3); revisit (4).
    "fedmd": Preset(
        source="Li and Wang 2019, arXiv 1910.03581",
        strategy={"aggregator": {"name": "logit-mean"}, "codec": "float32"},
        client={"distil_loss": "mae", "public_epochs": 20, "warmup_epochs": 25},
        student={"distil_loss": "mae"},
    ),
    # Plain federated distillation: the linear pool, nothing else.
    "mean": Preset(
        source="Lin et al. 2020, arXiv 2006.07242 (avg_probs), labels only",
        strategy={"aggregator": {"name": "mean"}, "codec": "float32"},
        client={"distil_loss": "kl"},
        student={"distil_loss": "kl"},
    ),
}
