"""The MNIST network of the DP-SGD literature, 26,010 weights: with ReLU as in Opacus' example, and with tanh.

tanh bounds what a layer passes on, and so the gradients that are clipped (Papernot et al. 2021, arXiv:2007.14191).
"""

from __future__ import annotations

from torch import nn

from distillation.models.images import image_shape

# Below it nothing is left for the second pooling.
_SMALLEST = 14


def cnn_opacus(shape: tuple[int, ...], classes: int) -> nn.Module:
    """The network below with ReLU: the model of Opacus' published MNIST results (examples/mnist.py)."""
    return _network("cnn-opacus", nn.ReLU, shape, classes)


def cnn_tanh(shape: tuple[int, ...], classes: int) -> nn.Module:
    """The network below with tanh."""
    return _network("cnn-tanh", nn.Tanh, shape, classes)


def _network(name: str, activation: type[nn.Module], shape: tuple[int, ...], classes: int) -> nn.Module:
    """Conv 8x8 stride 2 pad 3 to 16 maps, max-pool 2 stride 1, conv 4x4 stride 2 to 32, the same pool, 32 hidden."""
    channels, height, width = image_shape(name, shape, _SMALLEST)
    rows, columns = (((side // 2 - 1) - 4) // 2 for side in (height, width))
    return nn.Sequential(
        nn.Conv2d(channels, 16, 8, stride=2, padding=3),
        activation(),
        nn.MaxPool2d(2, stride=1),
        nn.Conv2d(16, 32, 4, stride=2),
        activation(),
        nn.MaxPool2d(2, stride=1),
        nn.Flatten(),
        nn.Linear(32 * rows * columns, 32),
        activation(),
        nn.Linear(32, classes),
    )
