"""Two strided convolutions: the reference model of the benchmarks."""

from __future__ import annotations

from torch import nn

from distillation.models.images import image_shape


def cnn_small(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Conv 5x5 stride 2 pad 2 to 16 channels, ReLU, the same to 32, ReLU, flatten, linear."""
    channels, height, width = image_shape("cnn-small", shape, 4)
    # A 5x5 convolution of stride 2 and padding 2 halves a side, rounded up.
    features = 32 * -(-height // 4) * -(-width // 4)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, classes),
    )
