"""What selectors look at: raw inputs, or what the site's own model makes of them, in at most 64 dimensions."""

from __future__ import annotations

import torch
from torch import nn

from distillation.data import Proxy, Samples
from distillation.learner import TorchLearner
from strategies.soft_labels import Float32

FEATURES = ("inputs", "model")
# Distances between rows of more dimensions hardly differ, and every selector's cost grows with them.
DIMENSIONS = 64
# Rows that the axes are fitted to: more move them little.
_FITTED = 8000


def selector_features(on: str, learner: TorchLearner, private: Samples, proxy: Proxy) -> tuple[Float32, Float32]:
    """Features of a site's rows and of the proxy rows, at most 64 dimensions each.

    Args:
        on: inputs (as the model gets them, flattened) or model (its penultimate activations).
        learner: the site's; its weights are not changed.
        private: [m, *shape].
        proxy: [n, *shape]; these rows alone give the 64 axes.

    Returns:
        [m, d] and [n, d].

    Raises:
        ValueError: unknown kind, or a model without a linear layer.
    """
    if on not in FEATURES:
        raise ValueError(f"on={on!r} must be one of {', '.join(FEATURES)}")
    sets = (private.features, proxy.samples.features)
    if on == "model":
        own, public = (penultimate(learner, features) for features in sets)
    else:
        own, public = (proxy.inputs.tensor(features).flatten(1).numpy() for features in sets)
    return reduced(own, public)


def penultimate(learner: TorchLearner, features: torch.Tensor) -> Float32:
    """[n, width] what enters the model's last linear layer, in evaluation mode, for stored features.

    Raises:
        ValueError: the model has no linear layer.

    Guarantees:
        Leaves no hook behind.
    """
    layers = [module for module in learner.model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError('on="model" needs a model with a linear layer: set on="inputs"')
    seen: list[torch.Tensor] = []
    hook = layers[-1].register_forward_pre_hook(lambda _, entering: seen.append(entering[0].flatten(1).float().cpu()))
    try:
        learner.logits(features)
    finally:
        hook.remove()
    outputs: Float32 = torch.cat(seen).numpy()
    return outputs


def reduced(private: Float32, proxy: Float32, dimensions: int = DIMENSIONS) -> tuple[Float32, Float32]:
    """Both on the proxy rows' first principal axes; unchanged where they have no more dimensions than asked.

    Guarantees:
        Centre and axes are functions of the proxy rows alone: only a selector is ever fitted to private rows.
    """
    if proxy.shape[1] <= dimensions:
        return private, proxy
    from sklearn.decomposition import PCA

    some = proxy[:: -(-len(proxy) // _FITTED)]
    axes = PCA(min(dimensions, len(some)), svd_solver="randomized", random_state=0).fit(some)
    own, public = (axes.transform(rows).astype("float32") for rows in (private, proxy))
    return own, public
