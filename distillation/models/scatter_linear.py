"""Multinomial logistic regression on scattering features (Tramer and Boneh 2021)."""

from __future__ import annotations

from torch import nn

from distillation.models.fixed import OnFixed
from distillation.models.images import image_shape
from distillation.models.scattering import SMALLEST, STRIDE, scattering_maps


def scatter_linear(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Scattering, group normalisation, flatten, one linear layer."""
    channels, height, width = image_shape("scatter-linear", shape, SMALLEST)
    fixed, maps = scattering_maps(channels, height, width)
    features = maps * (height // STRIDE) * (width // STRIDE)
    return OnFixed(nn.Sequential(fixed, nn.Flatten()), nn.Linear(features, classes))
