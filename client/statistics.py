"""What the policy may let leave beside votes, or decide where there are any: statistics of a site's private rows."""

from __future__ import annotations

import numpy as np

from client.config import SelectorSection, SiteConfig
from distillation.data import Proxy, Samples
from distillation.learner import TorchLearner
from distillation.selectors import build_selector, selector_features
from distillation.selectors.selector import Selection
from strategies.seeds import stream_seed
from strategies.soft_labels import Float64, Int64, SoftLabels


def competence_of(
    section: SelectorSection, learner: TorchLearner, config: SiteConfig, proxy: Proxy, private: Samples
) -> Selection:
    """What a selector says of every proxy row."""
    selector = build_selector(section.name, section.settings)
    own, public = selector_features(section.on, learner, private, proxy)
    rng = np.random.default_rng(stream_seed(config.seed, "selector", config.site))
    return selector.select(own, _labels(private), public, rng)


def class_counts(private: Samples, classes: int) -> Float64:
    """[classes] private rows of each class."""
    return np.bincount(_labels(private), minlength=classes).astype(np.float64)


def class_tables(learner: TorchLearner, asked: Int64) -> SoftLabels:
    """Mean outputs on the private rows of each asked class that there are rows of."""
    tables = learner.class_tables()
    kept = np.isin(tables.rows, asked)
    return SoftLabels(tables.rows[kept], tables.log_probs[kept])


def _labels(private: Samples) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    labels = private.labels
    return np.asarray(labels.numpy() if labels is not None else np.empty(0), np.int64)
