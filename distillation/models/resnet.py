"""CIFAR ResNets (He et al. 2016, section 4.2) with GroupNorm: no statistic crosses samples, as DP-SGD needs."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

from distillation.models.images import image_shape

_GROUPS = 8


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(_GROUPS, after)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(_GROUPS, after)
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.norm1(self.first(x)))
        return F.relu(self.norm2(self.second(inner)) + self.shortcut(x))


def _resnet(name: str, blocks: int, shape: tuple[int, ...], classes: int) -> nn.Module:
    channels, _, _ = image_shape(name, shape, 4)
    layers: list[nn.Module] = [
        nn.Conv2d(channels, 16, 3, padding=1, bias=False),
        nn.GroupNorm(_GROUPS, 16),
        nn.ReLU(),
    ]
    before = 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for index in range(blocks):
            layers.append(_Block(before, width, stride if index == 0 else 1))
            before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def resnet8(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Three stages of one block: 8 weighted layers."""
    return _resnet("resnet8", 1, shape, classes)


def resnet20(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Three stages of three blocks: 20 weighted layers."""
    return _resnet("resnet20", 3, shape, classes)
