"""One row a model: shapes, exact sizes, no leak between samples, the same weights from the same seed."""

import pytest
import torch

from distillation.models import MODELS, build_model, parameter_count

IMAGE = (1, 28, 28)
# model: input shape, trainable parameters for 10 classes, counted by hand from the layers
ROWS = {
    "linear": (IMAGE, 784 * 10 + 10),
    "mlp": (IMAGE, 784 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10),
    # (25 + 1) * 16, (16 * 25 + 1) * 32, 32 * 7 * 7 * 10 + 10
    "cnn-small": (IMAGE, 416 + 12_832 + 15_690),
    # 3x3: (9+1)*32, (288+1)*32, (288+1)*64, (576+1)*64; then 64*7*7*128+128 and 1290
    "cnn": (IMAGE, 320 + 9_248 + 18_496 + 36_928 + 401_536 + 1_290),
    # (64+1)*16, (256+1)*32, (512+1)*32, 33*10: the 26,010 weights of Opacus' MNIST example
    "cnn-opacus": (IMAGE, 1_040 + 8_224 + 16_416 + 330),
    "cnn-tanh": (IMAGE, 1_040 + 8_224 + 16_416 + 330),
    # 81 maps of 7x7; then (81*9+1)*16 to 4x4, (16*9+1)*32, (32*4*4+1)*32, 33*10
    "scatter-linear": (IMAGE, 81 * 49 * 10 + 10),
    "scatter-cnn": (IMAGE, 11_680 + 4_640 + 16_416 + 330),
    # stem 9*16 + 32; stages 16->16, 16->32, 32->64 without biases, GroupNorm 2 a channel, 1x1 shortcuts; 650
    "resnet8": (IMAGE, 176 + (4_608 + 64) + (13_824 + 512 + 128) + (55_296 + 2_048 + 256) + 650),
    "resnet20": (
        IMAGE,
        176
        + 3 * (4_608 + 64)
        + (13_824 + 512 + 128)
        + 2 * (18_432 + 128)
        + (55_296 + 2_048 + 256)
        + 2 * (73_728 + 256)
        + 650,
    ),
}
ALL = sorted(ROWS)
# Where smaller images than 8x8 leave a model nothing to look at: the smallest it takes, and a lopsided one.
SMALL = {name: [(1, 14, 14), (1, 15, 20)] for name in ("cnn-opacus", "cnn-tanh")}
TINY = [(1, 8, 8), (1, 9, 5)]


def test_every_model_has_a_row():
    assert set(ROWS) == set(MODELS)


@pytest.mark.parametrize("name", ALL)
def test_parameters_are_those_of_the_published_layers(name):
    shape, expected = ROWS[name]
    assert parameter_count(build_model(name, shape, 10, 0)) == expected


@pytest.mark.parametrize(
    ("name", "shape"), [(name, shape) for name in ALL for shape in (IMAGE, (3, 32, 32), *SMALL.get(name, TINY))]
)
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_outputs_are_a_row_of_logits_an_input(name, shape, rows):
    outputs = build_model(name, shape, 7, 0)(torch.zeros(rows, *shape))
    assert outputs.shape == (rows, 7)
    assert torch.isfinite(outputs).all()


@pytest.mark.parametrize("name", ALL)
def test_no_sample_touches_another(name):
    shape = SMALL.get(name, TINY)[0]
    model = build_model(name, shape, 5, 0)
    batch = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    for mode in (model.train, model.eval):
        mode()
        (gradient,) = torch.autograd.grad(model(batch)[0].sum(), batch)
        assert gradient[0].abs().sum() > 0
        assert gradient[1:].abs().sum() == 0


@pytest.mark.parametrize("name", ALL)
def test_the_seed_decides_the_weights_and_nothing_else_is_disturbed(name):
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    shape = SMALL.get(name, TINY)[0]
    one, same, other = (build_model(name, shape, 3, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


SIDES = {"cnn-opacus": 14, "cnn-tanh": 14, "scatter-linear": 5, "scatter-cnn": 5}


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("linear", "mlp")])
def test_image_models_refuse_tables_and_tiny_images(name):
    side = SIDES.get(name, 4)
    with pytest.raises(ValueError, match=f"'{name}' needs images .*use 'linear' or 'mlp'"):
        build_model(name, (30,), 2, 0)
    for shape in ((1, side - 1, side + 5), (1, side + 5, side - 1)):
        with pytest.raises(ValueError, match=f"'{name}' needs images of at least {side}x{side}"):
            build_model(name, shape, 2, 0)


def test_an_unknown_model_lists_the_known_ones():
    with pytest.raises(KeyError, match=r"cnn, cnn-opacus, cnn-small, .*resnet8, scatter-cnn, scatter-linear"):
        build_model("vgg", IMAGE, 10, 0)
