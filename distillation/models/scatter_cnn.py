"""Two small tanh convolutions on scattering features (Tramer and Boneh 2021, table 6)."""

from __future__ import annotations

from torch import nn

from distillation.models.fixed import OnFixed
from distillation.models.images import image_shape
from distillation.models.scattering import SMALLEST, STRIDE, scattering_maps


def scatter_cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Scattering, group normalisation; conv 3x3 stride 2 to 16 maps, conv 3x3 to 32, 32 hidden units; tanh between."""
    channels, height, width = image_shape("scatter-cnn", shape, SMALLEST)
    fixed, maps = scattering_maps(channels, height, width)
    # A 3x3 convolution of stride 2 and padding 1 halves a side, rounded up.
    rows, columns = (-(-(side // STRIDE) // 2) for side in (height, width))
    head = nn.Sequential(
        nn.Conv2d(maps, 16, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(32 * rows * columns, 32),
        nn.Tanh(),
        nn.Linear(32, classes),
    )
    return OnFixed(fixed, head)
