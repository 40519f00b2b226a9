"""The scattering transform: image features that are known before any row is seen (Bruna and Mallat 2013).

An image is filtered with complex waves of two scales and eight directions; the modulus of what comes out is filtered
once more, and everything is averaged over a Gaussian of 4 pixels. Nothing is learned and no number comes from data, so
a model on these features pays for its head alone (Tramer and Boneh 2021, arXiv:2011.11660). Scales, directions and
constants are those of the Kymatio library (Andreux et al. 2020), which that paper uses.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

SCALES = 2
DIRECTIONS = 8
STRIDE = 1 << SCALES
# The image itself, 2 x 8 first waves, and 8 x 8 coarse waves of the fine ones.
CHANNELS = 1 + SCALES * DIRECTIONS + DIRECTIONS**2
# Reflection needs a side longer than its margin of 4.
SMALLEST = STRIDE + 1

_WIDTH = 0.8
_FREQUENCY = 0.75 * math.pi
_SLANT = 4 / DIRECTIONS
# Of either neighbour's map that is taken from a direction's, found with benchmarks/dp_accuracy.py: MNIST, epsilon 3.
_INHIBITION = 1 / 6
_GROUPS = 9
# Images a step: more of them fall out of a core's cache, and a step is then twice as slow.
_CHUNK = 8


class Scattering(nn.Module):
    """Orders 0, 1 and 2 at J = 2 scales and L = 8 directions, without parameters.

    Args:
        height, width: of the images, 5 or more.

    Guarantees:
        Row i of the output depends on row i of the input only, and on no data set.
    """

    _fine: torch.Tensor
    _coarse: torch.Tensor
    _down: torch.Tensor
    _across: torch.Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        tall, wide = _padded(height), _padded(width)
        self._margins = (*_margins(width, wide), *_margins(height, tall))
        waves = [_waves(tall, wide, scale) for scale in range(SCALES)]
        # Not persistent: what a formula gives again is no part of a model's state.
        self.register_buffer("_fine", torch.fft.fft2(waves[0]).real.float(), persistent=False)
        # Every second pixel in space is the mean of four quarters of the spectrum.
        self.register_buffer("_coarse", _quarters(torch.fft.fft2(waves[1]).real.float() / 4), persistent=False)
        self.register_buffer("_down", _averages(tall).float(), persistent=False)
        self.register_buffer("_across", _averages(wide).float().T.contiguous(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, channels, height, width] to [n, channels * 81, height // 4, width // 4].

        A channel's 81 maps are: its average; the fine waves, then the coarse ones, by direction; the coarse waves
        of the fine ones, by the fine wave's direction, then the coarse one's.
        """
        images = F.pad(x, self._margins, mode="reflect").flatten(0, 1)
        none = images.new_empty(0, CHANNELS, len(self._down), self._across.shape[1])
        # The Fourier transform refuses a batch of no image, which Poisson sampling may draw.
        maps = torch.cat([none, *(self._scatter(part) for part in images.split(_CHUNK) if len(part))])
        return maps.reshape(len(x), x.shape[1] * CHANNELS, *maps.shape[2:])

    def _scatter(self, images: torch.Tensor) -> torch.Tensor:
        spectra = torch.fft.fft2(images)[:, None]
        fine = torch.fft.ifft2(spectra * self._fine).abs()
        coarse = self._coarse_waves(spectra)
        second = self._coarse_waves(torch.fft.fft2(fine)[:, :, None]).flatten(1, 2)
        halved = self._average(torch.cat([coarse, second], dim=1), 2)
        return torch.cat([self._average(images[:, None], 1), self._average(fine, 1), halved], dim=1)

    def _coarse_waves(self, spectra: torch.Tensor) -> torch.Tensor:
        """Moduli of the coarse waves at every second pixel."""
        quarters = _quarters(spectra)
        folded = quarters[..., 0, :, 0, :] * self._coarse[:, 0, :, 0]
        for i, j in ((0, 1), (1, 0), (1, 1)):
            folded = folded + quarters[..., i, :, j, :] * self._coarse[:, i, :, j]
        moduli: torch.Tensor = torch.fft.ifft2(folded).abs()
        return moduli

    def _average(self, maps: torch.Tensor, step: int) -> torch.Tensor:
        """Gaussian means around every fourth pixel of maps that know every `step`-th pixel."""
        rows = maps @ (step * self._across[::step])
        means: torch.Tensor = (rows.mT @ (step * self._down[:, ::step].T)).mT
        return means


class _Inhibition(nn.Module):
    """Every wave's map less a sixth of the maps of either neighbouring direction, as neighbours do in the retina.

    Waves of neighbouring directions answer nearly alike. What they share is most of a record's features and says little
    about its class, so noise that is scaled to the features' length drowns what differs.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, channels * 81, h, w] to the same shape; a channel's average stays as it is."""
        maps = x.unflatten(1, (-1, CHANNELS))
        average, fine, coarse, second = maps.split([1, DIRECTIONS, DIRECTIONS, DIRECTIONS**2], dim=2)
        grid = second.unflatten(2, (DIRECTIONS, DIRECTIONS))
        grid = _inhibited(_inhibited(grid, 2), 3)
        return torch.cat([average, _inhibited(fine, 2), _inhibited(coarse, 2), grid.flatten(2, 3)], dim=2).flatten(1, 2)


def _inhibited(maps: torch.Tensor, directions: int) -> torch.Tensor:
    """Directions lie on a circle: the last one's neighbour is the first."""
    return maps - _INHIBITION * (maps.roll(1, directions) + maps.roll(-1, directions))


def scattering_maps(channels: int, height: int, width: int) -> tuple[nn.Module, int]:
    """Normalised features of [n, channels, height, width] images, and how many maps they are.

    Scattering, inhibition of neighbouring directions, group normalisation.
    """
    maps = channels * CHANNELS
    # Groups of one image's own maps and no scale or shift to learn: no statistic of private rows is needed.
    normalised = nn.GroupNorm(channels * _GROUPS, maps, affine=False)
    return nn.Sequential(Scattering(height, width), _Inhibition(), normalised), maps


def _padded(side: int) -> int:
    return (side // STRIDE + 2) * STRIDE


def _margins(side: int, padded: int) -> tuple[int, int]:
    before = (padded - side) // 2
    return before, padded - side - before


def _quarters(spectra: torch.Tensor) -> torch.Tensor:
    """[..., h, w] to [..., 2, h / 2, 2, w / 2]."""
    *lead, height, width = spectra.shape
    return spectra.reshape(*lead, 2, height // 2, 2, width // 2)


def _waves(height: int, width: int, scale: int) -> torch.Tensor:
    """[8, height, width] complex Morlet waves on a torus, by direction: each sums to 0."""
    sigma, frequency = _WIDTH * 2**scale, _FREQUENCY / 2**scale
    waves = []
    for direction in range(DIRECTIONS):
        angle = math.pi * direction / DIRECTIONS
        wave, bump = (_gabor(height, width, sigma, angle, f) for f in (frequency, 0.0))
        waves.append(wave - wave.sum() / bump.sum() * bump)
    return torch.stack(waves)


def _gabor(height: int, width: int, sigma: float, angle: float, frequency: float) -> torch.Tensor:
    """[height, width] complex: exp(i frequency u) under a Gaussian in u and slant * v, wrapped around the torus."""
    y = torch.arange(-2 * height, 3 * height, dtype=torch.float64)[:, None]
    x = torch.arange(-2 * width, 3 * width, dtype=torch.float64)[None, :]
    u, v = y * math.cos(angle) + x * math.sin(angle), x * math.cos(angle) - y * math.sin(angle)
    bump = torch.exp(-(u**2 + (_SLANT * v) ** 2) / (2 * sigma**2)) * _SLANT / (2 * math.pi * sigma**2)
    return torch.polar(bump, frequency * u).reshape(5, height, 5, width).sum((0, 2))


def _averages(side: int) -> torch.Tensor:
    """[side / 4 - 2, side]: row a weighs the pixels around pixel 4 (a + 1); the outermost two are margin."""
    sigma = _WIDTH * STRIDE / 2
    centres = torch.arange(STRIDE, side - STRIDE, STRIDE, dtype=torch.float64)[:, None]
    pixels = torch.arange(-2 * side, 3 * side, dtype=torch.float64)
    weights = torch.exp(-((pixels - centres) ** 2) / (2 * sigma**2)) / (math.sqrt(2 * math.pi) * sigma)
    return weights.reshape(len(centres), 5, side).sum(1)
