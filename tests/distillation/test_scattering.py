"""The scattering transform: equal to sums written out in space, and what a fixed public feature map must obey."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillation.models import build_model
from distillation.models.scattering import CHANNELS, Scattering, scattering_maps


def images(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blob(row, column, side=28):
    """A smooth, lopsided spot on black; exactly 0 beyond 6 pixels."""
    y, x = np.mgrid[:side, :side]
    u, v = y - row, x - column
    spot = np.exp(-(u**2 + 2 * v**2 + u * v) / 6) * (u**2 + v**2 <= 36)
    return torch.from_numpy(spot.astype(np.float32))[None, None]


def wrapped(formula, height, width):
    """[height, width] sums of formula(y, x) over all copies of the torus."""
    y, x = np.mgrid[:height, :width].astype(float)
    copies = range(-3, 4)
    return sum(formula(y + i * height, x + j * width) for i in copies for j in copies)


def morlet(height, width, scale, direction):
    sigma, xi, angle = 0.8 * 2**scale, 0.75 * np.pi / 2**scale, np.pi * direction / 8

    def gabor(frequency):
        def formula(y, x):
            u, v = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
            return np.exp(-(u**2 + v**2 / 4) / (2 * sigma**2) + 1j * frequency * u) / (4 * np.pi * sigma**2)

        return wrapped(formula, height, width)

    wave, bump = gabor(xi), gabor(0.0)
    return wave - wave.sum() / bump.sum() * bump


def gaussian(height, width):
    return wrapped(lambda y, x: np.exp(-(y**2 + x**2) / (2 * 1.6**2)) / (2 * np.pi * 1.6**2), height, width)


def convolved(image, kernel):
    """Circular convolution, one shifted kernel a pixel."""
    pixels = np.ndindex(*image.shape)
    return sum(image[pixel] * np.roll(kernel, pixel, (0, 1)) for pixel in pixels)


def scattered(image):
    """All 81 maps of one image in float64, by the definition."""
    sides = [(side // 4 + 2) * 4 for side in image.shape]
    before = [(padded - side) // 2 for padded, side in zip(sides, image.shape, strict=True)]
    around = [(b, p - s - b) for b, p, s in zip(before, sides, image.shape, strict=True)]
    padded = np.pad(image.astype(float), around, mode="reflect")
    fine, coarse = ([morlet(*sides, scale, direction) for direction in range(8)] for scale in (0, 1))
    low = gaussian(*sides)
    # Maps of every second pixel meet the Gaussian of every second pixel, whose values count four times.
    first = [np.abs(convolved(padded, wave)) for wave in fine]
    halved = [np.abs(convolved(padded, wave))[::2, ::2] for wave in coarse]
    halved += [np.abs(convolved(inner, wave))[::2, ::2] for inner in first for wave in coarse]
    maps = [convolved(whole, low)[::4, ::4] for whole in (padded, *first)]
    maps += [convolved(half, 4 * low[::2, ::2])[::2, ::2] for half in halved]
    return np.stack(maps)[:, 1:-1, 1:-1]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 5), (6, 11)])
def test_the_maps_are_those_of_sums_written_out_in_space(height, width):
    image = images(0, 1, 1, height, width)
    expected = scattered(image[0, 0].numpy())
    assert expected.shape == (81, height // 4, width // 4)
    np.testing.assert_allclose(Scattering(height, width)(image)[0].numpy(), expected, atol=1e-6)


def test_a_flat_image_is_its_own_average_and_has_no_waves():
    # A Gaussian's values at whole pixels add up to 1 within 2 exp(-2 pi^2 1.6^2), far below float32's grid.
    maps = Scattering(12, 10)(torch.full((1, 1, 12, 10), 0.7))[0]
    torch.testing.assert_close(maps[0], torch.full((3, 2), 0.7))
    assert maps[1:].abs().max() < 1e-6


def test_waves_scale_with_the_contrast_and_are_blind_to_the_sign():
    scattering, x = Scattering(13, 9), images(1, 2, 1, 13, 9)
    plain, scaled, negative = scattering(x), scattering(2.5 * x), scattering(-x)
    torch.testing.assert_close(scaled, 2.5 * plain)
    torch.testing.assert_close(negative[:, 1:], plain[:, 1:])
    torch.testing.assert_close(negative[:, 0], -plain[:, 0])


def test_a_transposed_image_has_transposed_maps_of_mirrored_directions():
    # Swapping the axes sends the angle pi t / 8 to pi (4 - t) / 8; waves of opposite angles have one modulus.
    mirror = [(4 - t) % 8 for t in range(8)]
    order = [0, *(1 + t for t in mirror), *(9 + t for t in mirror), *(17 + 8 * s + t for s in mirror for t in mirror)]
    x = images(2, 3, 1, 12, 9)
    torch.testing.assert_close(Scattering(9, 12)(x.mT), Scattering(12, 9)(x)[:, order].mT, atol=1e-6, rtol=1e-5)


def test_a_shift_by_the_stride_shifts_the_maps_by_one():
    # The spot stays 4 pixels off the border, so the reflected margin is black before and after.
    scattering = Scattering(28, 28)
    still, moved = scattering(blob(12, 12)), scattering(blob(16, 12))
    torch.testing.assert_close(moved[:, :, 1:], still[:, :, :-1], atol=1e-6, rtol=1e-5)


def test_a_shift_by_a_pixel_moves_features_a_quarter_as_far_as_pixels():
    coins = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    still = torch.nn.functional.pad(coins.float(), (8, 8, 8, 8))
    moved, scattering = still.roll(1, 2), Scattering(28, 28)
    # Half of the coins fall otherwise than their neighbour, and half of the coins are 1: about sqrt(.5 / .5) = 1.
    assert 0.9 < (still - moved).norm() / still.norm() < 1.1
    before, after = scattering(still), scattering(moved)
    assert (before - after).norm() / before.norm() < 0.25


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-3, 1.0]))
@settings(max_examples=40)
def test_no_two_images_are_driven_apart(seed, distance):
    # The waves' squared gains and the Gaussian's add up to 1 at most at each frequency, and moduli only draw nearer:
    # 16 values stand for one, so 16 |Sx - Sy|^2 <= |x - y|^2 up to what taking every fourth pixel folds back (1 %).
    x = images(seed, 1, 1, 20, 20)
    y = distance * x + (1 - distance) * images(seed + 1, 1, 1, 20, 20) if distance < 1 else x + 1.0
    margin = torch.nn.functional.pad(x - y, (4, 4, 4, 4), mode="reflect")
    scattering = Scattering(20, 20)
    assert 4 * (scattering(x) - scattering(y)).norm() <= 1.005 * margin.norm()


@settings(max_examples=20)
@given(st.integers(5, 24), st.integers(5, 24), st.integers(1, 3), st.integers(0, 3))
def test_every_channel_of_every_image_has_81_maps_a_quarter_as_wide(height, width, channels, rows):
    scattering, x = Scattering(height, width), images(3, rows, channels, height, width)
    maps = scattering(x)
    assert maps.shape == (rows, channels * 81, height // 4, width // 4)
    for channel in range(channels):
        own = scattering(x[:, channel : channel + 1])
        torch.testing.assert_close(maps[:, channel * CHANNELS : (channel + 1) * CHANNELS], own, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["scatter-linear", "scatter-cnn"])
def test_a_row_without_numbers_spoils_no_other_row(name):
    fixed = build_model(name, (1, 8, 8), 3, 0).fixed
    # 11 rows: more than a step of the transform, so both kinds of neighbours are there.
    clean = images(4, 11, 1, 8, 8)
    spoilt = clean.clone()
    spoilt[4, 0, 3, 3], spoilt[9, 0, 0, 0] = torch.nan, torch.inf
    others = [row for row in range(11) if row not in (4, 9)]
    assert torch.equal(fixed(spoilt)[others], fixed(clean)[others])
    assert fixed(spoilt)[[4, 9]].isnan().flatten(1).any(1).all()


def test_features_do_not_depend_on_the_company_of_a_row():
    fixed, x = build_model("scatter-linear", (2, 9, 12), 3, 0).fixed, images(5, 20, 2, 9, 12)
    alone = torch.cat([fixed(row[None]) for row in x])
    torch.testing.assert_close(fixed(x), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["scatter-linear", "scatter-cnn"])
def test_the_fixed_part_has_nothing_to_learn_and_nothing_to_save(name):
    models = [build_model(name, (1, 8, 8), 3, seed) for seed in (0, 1)]
    x = images(6, 4, 1, 8, 8)
    assert not list(models[0].fixed.parameters())
    assert not models[0].fixed.state_dict()
    assert torch.equal(models[0].fixed(x), models[1].fixed(x))
    assert all(key.startswith("head.") for key in models[0].state_dict())


@pytest.mark.parametrize("name", ["scatter-linear", "scatter-cnn"])
def test_kept_features_and_a_head_are_the_model(name):
    model, x = build_model(name, (1, 12, 12), 3, 0), images(7, 5, 1, 12, 12)
    kept = model.fixed(x)
    assert torch.equal(model.head(kept), model(x))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(x).square().sum().backward()
    optimizer.step()
    assert torch.equal(model.fixed(x), kept)
    assert torch.equal(model.head(kept), model(x))


def test_normalised_maps_do_not_know_the_contrast():
    fixed, maps = scattering_maps(1, 12, 12)
    x = images(8, 3, 1, 12, 12)
    assert maps == 81
    torch.testing.assert_close(fixed(100 * x), fixed(1000 * x), atol=1e-4, rtol=1e-4)
    groups = fixed(100 * x).reshape(3, 9, -1)
    torch.testing.assert_close(groups.mean(2), torch.zeros(3, 9), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(groups.var(2, unbiased=False), torch.ones(3, 9), atol=1e-4, rtol=0.0)


def test_a_wave_is_less_a_sixth_of_its_neighbours_on_the_circle():
    fixed, _ = scattering_maps(2, 8, 12)
    scattering, inhibition, _ = fixed
    x = scattering(images(9, 3, 2, 8, 12))
    told = inhibition(x)

    def less(maps, axis):
        return np.stack(
            [maps.take(t, axis) - (maps.take((t - 1) % 8, axis) + maps.take((t + 1) % 8, axis)) / 6 for t in range(8)],
            axis,
        )

    for channel in range(2):
        before, after = (maps[:, channel * 81 : (channel + 1) * 81].double().numpy() for maps in (x, told))
        np.testing.assert_array_equal(after[:, 0], before[:, 0])
        for first in (1, 9):
            expected = less(before[:, first : first + 8], 1)
            np.testing.assert_allclose(after[:, first : first + 8], expected, atol=1e-6)
        grid = less(less(before[:, 17:].reshape(3, 8, 8, 2, 3), 1), 2)
        np.testing.assert_allclose(after[:, 17:], grid.reshape(3, 64, 2, 3), atol=1e-6)


def test_inhibition_loses_nothing_and_leaves_what_all_directions_share():
    # On the circle, a pattern of frequency f is multiplied by 1 - cos(2 pi f / 8) / 3: by 2/3 to 4/3, never by 0.
    inhibition = scattering_maps(1, 8, 8)[0][1]
    gains = 1 - np.cos(2 * np.pi * np.arange(8) / 8) / 3
    x = torch.zeros(1, 81, 1, 1)
    for frequency in range(8):
        x[0, 1:9, 0, 0] = torch.cos(2 * torch.pi * frequency * torch.arange(8) / 8)
        torch.testing.assert_close(inhibition(x)[0, 1:9], gains[frequency] * x[0, 1:9], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["scatter-linear", "scatter-cnn"])
def test_a_blank_image_has_features_and_gradients(name):
    model = build_model(name, (1, 8, 8), 3, 0)
    blank = torch.zeros(2, 1, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(blank).sum(), blank)
    assert torch.isfinite(model(blank)).all()
    assert torch.isfinite(gradient).all()
