"""Models by name. A new one is one file here, one line below, one test row.

A builder takes the shape of one input, without the batch, and the number of classes; its weights come from torch's
global generator, which `build_model` seeds and restores.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from distillation.models.cnn import cnn
from distillation.models.cnn_dp import cnn_opacus, cnn_tanh
from distillation.models.cnn_small import cnn_small
from distillation.models.linear import linear
from distillation.models.mlp import mlp
from distillation.models.resnet import resnet8, resnet20
from distillation.models.scatter_cnn import scatter_cnn
from distillation.models.scatter_linear import scatter_linear
from distillation.runtime import initialised_from

MODELS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "linear": linear,
    "mlp": mlp,
    "cnn-small": cnn_small,
    "cnn": cnn,
    "cnn-opacus": cnn_opacus,
    "cnn-tanh": cnn_tanh,
    "scatter-linear": scatter_linear,
    "scatter-cnn": scatter_cnn,
    "resnet8": resnet8,
    "resnet20": resnet20,
}


def build_model(name: str, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """The model `name` with weights drawn from `seed`; maps [n, *shape] float32 to [n, classes] logits.

    Raises:
        KeyError: unknown model.
        ValueError: the model does not fit inputs of this shape.
    """
    if name not in MODELS:
        raise KeyError(f"unknown model {name!r}; known: {', '.join(sorted(MODELS))}")
    with initialised_from(seed):
        return MODELS[name](shape, classes)


def parameter_count(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in model.parameters())
