"""The audit of every distillation loss: connected, alive, zero at the target, right scale, right reduction."""

import numpy as np
import pytest
import torch

from distillation.losses import DISTIL_LOSSES, kl_loss, mae_loss

ALL = sorted(DISTIL_LOSSES)


def fixture(classes=10, rows=16, spread=3.0, seed=0):
    rng = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, classes, generator=rng, dtype=torch.float32).requires_grad_()
    teacher = torch.log_softmax(spread * torch.randn(rows, classes, generator=rng), dim=1)
    return student, teacher


def gradient(loss, student, teacher, temperature=1.0):
    (grad,) = torch.autograd.grad(loss(student, teacher, temperature), student)
    return grad


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("classes", [3, 10, 100])
def test_the_gradient_is_alive(name, classes):
    grad = gradient(DISTIL_LOSSES[name], *fixture(classes))
    assert torch.isfinite(grad).all()
    assert (grad.norm(dim=1) > 0).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_student_at_its_target_has_no_loss_and_no_way_to_go(name, temperature):
    _, teacher = fixture()
    # A constant per row: raw logits differ from log-probabilities by one.
    student = (teacher + torch.arange(16.0)[:, None]).detach().requires_grad_()
    assert DISTIL_LOSSES[name](student, teacher, temperature).item() < 1e-5
    if name == "kl":
        assert gradient(kl_loss, student, teacher, temperature).norm() < 1e-6


@pytest.mark.parametrize("name", ALL)
def test_a_constant_per_row_on_either_side_changes_nothing(name):
    student, teacher = fixture()
    shift = torch.linspace(-3, 3, 16)[:, None]
    plain = DISTIL_LOSSES[name](student, teacher, 1.0)
    assert abs((DISTIL_LOSSES[name](student + shift, teacher, 1.0) - plain).item()) < 1e-5


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0, 4.0, 8.0, 16.0])
def test_kls_gradient_is_the_papers(temperature):
    student, teacher = fixture()
    expected = temperature * (torch.softmax(student / temperature, 1) - torch.softmax(teacher / temperature, 1)) / 16
    torch.testing.assert_close(gradient(kl_loss, student, teacher, temperature), expected, atol=1e-6, rtol=1e-5)


def test_the_squared_temperature_keeps_the_gradients_size():
    norms = [float(gradient(kl_loss, *fixture(3), t).norm()) for t in (1.0, 2.0, 3.0, 4.0, 8.0, 16.0)]
    assert max(norms) / min(norms) < 3  # without the factor: 127


@pytest.mark.parametrize("name", ALL)
def test_the_mean_is_over_rows(name):
    student, teacher = fixture()
    loss = DISTIL_LOSSES[name]
    one = loss(student, teacher, 1.0)
    twice = loss(torch.cat([student, student]), torch.cat([teacher, teacher]), 1.0)
    torch.testing.assert_close(one, twice)


def test_kl_equals_the_hand_computed_one():
    # teacher (.5, .5), student (.25, .75): .5 ln 2 + .5 ln(2/3) = .1438 nats
    teacher, student = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.25, 0.75]]))
    assert float(kl_loss(student, teacher)) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), abs=1e-6)


def test_mae_equals_the_hand_computed_one():
    # centred student (1, -1), centred teacher (-.5 ln 3, .5 ln 3) of (.25, .75): both entries differ by 1 + .5493
    student, teacher = torch.tensor([[4.0, 2.0]]), torch.log(torch.tensor([[0.25, 0.75]]))
    assert float(mae_loss(student, teacher)) == pytest.approx(1 + 0.5 * np.log(3), abs=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_extreme_logits_and_impossible_classes_stay_finite(name):
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, -1e4, -float("inf")]])
    assert torch.isfinite(DISTIL_LOSSES[name](student, teacher, 1.0))
    assert torch.isfinite(gradient(DISTIL_LOSSES[name], student, teacher)).all()


@pytest.mark.parametrize(("name", "share"), [("kl", 0.01), ("mae", 0.2)])
def test_free_logits_descend_to_the_teacher(name, share):
    student, teacher = fixture(rows=64)
    optimizer = torch.optim.Adam([student], lr=0.1)
    start = DISTIL_LOSSES[name](student, teacher, 1.0).item()
    for _ in range(100):
        optimizer.zero_grad()
        DISTIL_LOSSES[name](student, teacher, 1.0).backward()
        optimizer.step()
    assert DISTIL_LOSSES[name](student, teacher, 1.0).item() < share * start
