"""Two 3x3 blocks with pooling."""

from __future__ import annotations

from torch import nn

from distillation.models.images import image_shape


def _block(channels: int, width: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]


def cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Two blocks of (conv 3x3, ReLU, conv 3x3, ReLU, max-pool 2) with 32 and 64 channels, then 128 hidden units."""
    channels, height, width = image_shape("cnn", shape, 4)
    return nn.Sequential(
        *_block(channels, 32),
        *_block(32, 64),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )
