"""Multilayer perceptron."""

from __future__ import annotations

import math

from torch import nn

WIDTH = 128


def mlp(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Flatten, two hidden layers of 128 with ReLU, linear."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, classes),
    )
