"""Every model we offer is fit for DP-SGD, in both modes; what mixes records is refused by its name."""

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.conv import compute_conv_grad_sample
from opacus.layers import DPLSTM
from torch import nn
from torch.nn import functional

from distillation.data import Samples
from distillation.inputs import Column, TableInputs
from distillation.isolation import check_model
from distillation.learner import PrivateTraining, TorchLearner, Training
from distillation.models import MODELS, build_model
from distillation.runtime import generator
from privacy import dp_training
from privacy.dp_training import DpSgd, UnsuitableModel
from privacy.mechanisms.dp_sgd import DpSgdTraining
from tests.privacy.dp_phases import CPU, naive, phase, records, small, weights_of

BOTH = pytest.mark.parametrize("mode", ["hooks", "ghost"])
IMAGE = (1, 16, 16)


@BOTH
@pytest.mark.parametrize("name", sorted(MODELS))
def test_each_model_is_trained_as_by_the_plain_loop_over_records(name, mode):
    spec = DpSgd(0.5, 0.7, 0.6, 2, mode, 3)
    ours, plain = (build_model(name, IMAGE, 3, 0) for _ in range(2))
    data = records(7, IMAGE)
    phase(ours, data, spec, optimizer=torch.optim.SGD(ours.parameters(), lr=0.1))
    naive(plain, data, spec, optimizer=torch.optim.SGD(plain.parameters(), lr=0.1))
    assert torch.allclose(weights_of(ours), weights_of(plain), rtol=1e-4, atol=2e-5)


@BOTH
@pytest.mark.parametrize("name", sorted(MODELS))
def test_no_record_shows_in_another_records_gradient_in_any_model(name, mode):
    check_model(lambda: build_model(name, IMAGE, 3, 0), IMAGE, 3, mode)


class Centred(nn.Module):
    """Subtracts the batch's mean."""

    def forward(self, x):
        return x - x.mean(0)


class Faint(nn.Module):
    """Adds next to nothing of the neighbouring record."""

    def forward(self, x):
        return x + 1e-9 * x.roll(1, 0)


class Ranked(nn.Module):
    """Depends on where in the batch a record stands."""

    def forward(self, x):
        return x * torch.arange(1.0, len(x) + 1.0)[:, None]


class Blurred(nn.Module):
    """Noise of its own."""

    def forward(self, x):
        return x + torch.randn_like(x)


class Counting(nn.Module):
    """Keeps what it saw."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        self.seen += x.detach().sum(0)
        return x


class Low(nn.Module):
    """Computes in half precision inside."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x).float()


class Between(nn.Module):
    """Mixes records in its own forward, between two good layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.first(x)
        return self.second(hidden / (1.0 + hidden.detach().abs().max()))


class Spare(nn.Module):
    """Has a layer that it never uses."""

    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.used(x)


class Borrowing(nn.Module):
    """Uses a layer's weight behind its back."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.second(functional.linear(self.first(x), self.first.weight))


class SequenceFirst(nn.Module):
    """Puts records second."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x):
        return self.inner(x.expand(2, *x.shape)).sum(0)


class Recurrent(nn.Module):
    """Reads its input as two steps of two."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.last = rnn, nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.rnn(x.view(-1, 2, 2))[0][:, -1])


class Attentive(nn.Module):
    """Attends to its four features."""

    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(1, 1, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        tokens = x[..., None]
        return self.last(self.attention(tokens, tokens, tokens)[0][..., 0])


def after(layer):
    return nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 3))


REFUSED = {
    "BatchNorm": (lambda: after(nn.BatchNorm1d(4)), r"BatchNorm1d '1' keeps statistics .* use nn\.GroupNorm"),
    "BatchNorm without weights": (lambda: after(nn.BatchNorm1d(4, affine=False)), r"BatchNorm1d '1' keeps"),
    "batch mean": (lambda: after(Centred()), "Centred '1' mixes records"),
    "a billionth": (lambda: after(Faint()), "Faint '1' mixes records"),
    "position": (lambda: after(Ranked()), "Ranked '1' mixes records"),
    "in the model": (Between, r"Between \(the model itself\) mixes records"),
    "zero weights": (lambda: zeroed(after(Centred())), "Centred '1' mixes records"),
    "own noise": (lambda: after(Blurred()), r"Blurred '1' answers .* only nn\.Dropout may be random"),
    "buffer": (lambda: after(Counting()), "buffer '1.seen' changes"),
    "unused": (Spare, r"parameter 'spare\.weight' has no part in the logits"),
    "borrowed": (Borrowing, r"per-record gradients of 'first\.weight' are not the true ones"),
    "GRU": (lambda: Recurrent(nn.GRU(2, 5, batch_first=True)), r"GRU 'rnn' .* use opacus\.layers\.DPGRU"),
    "LSTM": (lambda: Recurrent(nn.LSTM(2, 5, batch_first=True)), r"LSTM 'rnn' .* use opacus\.layers\.DPLSTM"),
    "attention": (Attentive, r"MultiheadAttention 'attention' .* use opacus\.layers\.DPMultiheadAttention"),
    "in place": (lambda: after(nn.ReLU(inplace=True)), r"Linear '0' has its output changed in place"),
    "bfloat16": (lambda: after(nn.ReLU()).bfloat16(), r"Linear '0' has torch\.bfloat16 parameters"),
    "bfloat16 inside": (lambda: after(Low()), r"Linear '1\.inner' computes in torch\.bfloat16"),
    "sequence first": (SequenceFirst, "Linear 'inner' has 2 gradients for 4 records"),
    "nothing to train": (lambda: after(nn.ReLU()).requires_grad_(False), "Sequential trains no parameter"),
    "other inputs": (lambda: nn.Linear(5, 3), "Linear cannot be trained by DP-SGD: mat1 and mat2 shapes"),
}


def zeroed(model):
    nn.init.zeros_(model[2].weight)
    return model


@BOTH
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_model_that_breaks_the_guarantee_is_refused_by_its_modules_name(name, mode):
    build, message = REFUSED[name]
    with pytest.raises(UnsuitableModel, match=message):
        check_model(build, (4,), 3, mode)


def test_batch_statistics_are_refused_by_the_phase_itself():
    with pytest.raises(UnsuitableModel, match="BatchNorm1d '1'"):
        phase(after(nn.BatchNorm1d(4)), records(5), DpSgd(1.0, 1.0, 0.5, 1))


class Twice(nn.Module):
    """Runs one layer twice."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.first(self.first(x)))


def test_layers_that_run_twice_need_hooks():
    for build in (Twice, lambda: Recurrent(DPLSTM(2, 5, batch_first=True))):
        check_model(build, (4,), 3, "hooks")
        with pytest.raises(UnsuitableModel, match="runs twice or shares weights: use mode='hooks'"):
            check_model(build, (4,), 3, "ghost")


class Bare(nn.Module):
    """A parameter outside any layer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3))

    def forward(self, x):
        return x @ self.weight


@BOTH
def test_other_layers_are_trained_as_by_the_plain_loop(mode):
    class Tokens(nn.Module):
        def forward(self, x):
            return x.reshape(-1, 2, 2)

    builds = [
        Bare,
        lambda: after(nn.Sequential(nn.LayerNorm(4), nn.PReLU())),
        lambda: nn.Sequential(Tokens(), nn.Linear(2, 5), nn.Tanh(), nn.Flatten(), nn.Linear(10, 3)),
        lambda: nn.Sequential(Tokens(), nn.Conv1d(2, 4, 2), nn.Flatten(), nn.Linear(4, 3)),
    ]
    for build in builds:
        check_model(build, (4,), 3, mode)
        models = []
        for train in (phase, naive):
            torch.manual_seed(0)
            models.append(build())
            train(models[-1], records(6), DpSgd(0.3, 0.5, 0.5, 3, mode))
        assert torch.allclose(*map(weights_of, models), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 5, "stride": 2, "padding": 2},
        {"kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 1), "dilation": (2, 1)},
        {"kernel_size": 1, "bias": False},
        {"kernel_size": 3, "padding": "same", "groups": 2},
    ],
)
def test_convolutions_have_opacus_gradients(options):
    torch.manual_seed(0)
    layer, inputs = nn.Conv2d(4, 6, **options), torch.randn(5, 4, 9, 8)
    backprops = torch.randn_like(layer(inputs)).detach()
    ours = dp_training._conv2d(layer, [inputs], backprops)
    theirs = compute_conv_grad_sample(layer, [inputs], backprops)
    assert ours.keys() == theirs.keys()
    for parameter, samples in theirs.items():
        assert torch.allclose(ours[parameter], samples, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", ["cnn-small", "resnet8"])
def test_per_record_gradients_are_those_of_opacus_own_hooks(name):
    features, labels, _ = records(5, IMAGE)
    ours, theirs = build_model(name, IMAGE, 3, 0), build_model(name, IMAGE, 3, 0)
    engine, wrapped = dp_training._Engine(ours), GradSampleModule(theirs, loss_reduction="sum")
    engine.per_record(functional.cross_entropy(engine(features), labels, reduction="none"))
    functional.cross_entropy(wrapped(features), labels, reduction="sum").backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine.grad_sample, other.grad_sample, rtol=1e-3, atol=1e-5)


def learner(optimizer, mode):
    rng = torch.Generator().manual_seed(3)
    rows = Samples(torch.randn((30, 4), generator=rng), torch.randint(3, (30,), generator=rng))
    dp = PrivateTraining(DpSgdTraining(1.0, 0.5, 10, mode, 4), seeded=True)
    options = {"momentum": 0.9} if optimizer == "sgd" else {}
    training = Training(optimizer=optimizer, lr=0.05, **options)
    return TorchLearner(small(), training, TableInputs((Column("x"), Column("y"))), rows, rows, CPU, dp)


@BOTH
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_learner_that_is_saved_between_private_phases_goes_on_bit_for_bit(optimizer, mode):
    straight, saved = learner(optimizer, mode), learner(optimizer, mode)
    for either in (straight, saved):
        assert either.fit(2, generator(5)).steps == 6
    restored = learner(optimizer, mode)
    restored.restore(saved.state())
    for either in (straight, restored):
        either.fit_public(1, generator(6))
        either.fit(1, generator(7))
    first, second = straight.state(), restored.state()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
