"""Is a model fit for DP-SGD? Proven on made-up records, before a budget is touched.

The guarantee rests on one fact: what a record adds to a step depends on that record alone. Here one record stays as it
is while the others change, turn into NaN or go, and neither its logits nor its gradient may notice. NaN finds the
weakest leak: any arithmetic between records carries it over.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from privacy.mechanisms.mechanism import GRID
from privacy.noise import SeededEntropy

_RECORDS, _WATCHED = 4, 2
_CLIP_NORM = 1.0
# Rounding differs with the size of a batch; a leak of one part in a thousand is found without NaN.
_TOLERANCE = 1e-3


def check_model(
    model: nn.Module | Callable[[], nn.Module],
    example_shape: tuple[int, ...],
    classes: int,
    mode: Literal["hooks", "ghost"] = "hooks",
) -> None:
    """Return if DP-SGD can train the model; it is copied, and nothing of it changes.

    Args:
        model: or what builds it; maps [b, *example_shape] float32 to [b, classes] logits.
        example_shape: of one input.
        classes: of the logits.
        mode: as in DpSgd.

    Raises:
        UnsuitableModel: the module's name, and what is wrong with it: batch statistics or another operation across
            records, a parameter without a part in the logits, a buffer that training changes, an output that is not a
            function of the input, a layer whose per-record gradients are not the true ones.
    """
    from privacy.dp_training import UnsuitableModel, check_layers  # imports Opacus, which takes seconds

    trial = (copy.deepcopy(model) if isinstance(model, nn.Module) else model()).to("cpu").train()
    check_layers(trial)
    rng = torch.Generator().manual_seed(0)
    _disturb(trial, rng)
    inputs = torch.randn((_RECORDS, *example_shape), generator=rng)
    labels = torch.randint(classes, (_RECORDS,), generator=rng)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        try:
            _look(trial, inputs, labels)
            _compare_gradients(trial, inputs, labels, mode)
        except UnsuitableModel:
            raise
        except Exception as error:  # whatever a stranger's model raises
            raise UnsuitableModel(f"{type(trial).__name__} cannot be trained by DP-SGD: {error}") from error


def _disturb(model: nn.Module, rng: torch.Generator) -> None:
    """Weights of zero would hide leaks behind them, and dropout is random on purpose."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.05)


def _neighbours(inputs: torch.Tensor, rng: torch.Generator) -> Iterator[tuple[torch.Tensor, int]]:
    """Batches in which only the watched record stays as it is, and where it stands."""
    for others in (torch.randn(inputs.shape, generator=rng) * 100.0, torch.full(inputs.shape, torch.nan)):
        others[_WATCHED] = inputs[_WATCHED]
        yield others, _WATCHED
    yield inputs[_WATCHED : _WATCHED + 1], 0


@dataclass(slots=True)
class _Seen:
    """What happened to one record.

    Attributes:
        calls: module, its inputs and outputs of this record; inner modules before those that hold them.
        gradients: of the record's loss, by parameter; none where the batch holds NaN.
    """

    calls: list[tuple[str, list[torch.Tensor], list[torch.Tensor]]] = field(default_factory=list)
    gradients: dict[str, torch.Tensor | None] = field(default_factory=dict)


def _watch(model: nn.Module, inputs: torch.Tensor, label: torch.Tensor, row: int) -> _Seen:
    seen = _Seen()

    def rows(given: Any) -> list[torch.Tensor]:
        parts = given if isinstance(given, tuple | list) else (given,)
        tensors = [part for part in parts if isinstance(part, torch.Tensor) and part.shape[:1] == inputs.shape[:1]]
        return [tensor[row].detach().clone() for tensor in tensors]

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, given, made: seen.calls.append((_told(name, module), rows(given), rows(made)))

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
    try:
        loss = F.cross_entropy(model(inputs)[row : row + 1], label[None])
    finally:
        for handle in handles:
            handle.remove()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if torch.isfinite(inputs).all():  # plain torch adds 0 * NaN for the others; the mechanism is asked below
        made = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        seen.gradients = dict(zip(trained, made, strict=True))
    return seen


def _look(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Outputs of every module, gradients and buffers, by plain torch."""
    from privacy.dp_spec import UnsuitableModel

    label, buffers = labels[_WATCHED], {name: value.clone() for name, value in model.named_buffers()}
    first = _watch(model, inputs, label, _WATCHED)
    for name, value in model.named_buffers():
        if not torch.equal(value, buffers[name]):
            raise UnsuitableModel(f"buffer {name!r} changes with what passes through: it would keep private rows")
    for name, gradient in first.gradients.items():
        if gradient is None:
            raise UnsuitableModel(f"parameter {name!r} has no part in the logits: remove it or freeze it")
    moved = _difference(first, _watch(model, inputs, label, _WATCHED))
    if moved:
        raise UnsuitableModel(f"{moved} answers the same input in two ways: only nn.Dropout may be random")
    for others, row in _neighbours(inputs, torch.Generator().manual_seed(1)):
        moved = _difference(first, _watch(model, others, label, row))
        if moved:
            raise UnsuitableModel(f"{moved} mixes records: what it makes of one changes with the others in its batch")


def _difference(first: _Seen, second: _Seen) -> str | None:
    """The innermost module that made something else of the same input; else whose gradient moved; None if nothing."""
    if len(first.calls) != len(second.calls):
        return first.calls[-1][0]
    for (told, given, made), (_, others_given, others_made) in zip(first.calls, second.calls, strict=True):
        if _alike(given, others_given) and not _alike(made, others_made):
            return told
    for name, other in second.gradients.items():
        gradient = first.gradients[name]
        if gradient is not None and (other is None or not _alike([gradient], [other])):
            return f"what makes the gradient of {name!r}"
    return None


def _alike(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(
        one.shape == other.shape
        and torch.allclose(one.double(), other.double(), _TOLERANCE, _TOLERANCE * float(one.abs().max()))
        for one, other in zip(first, second, strict=True)
        if one.numel()
    )


def _told(name: str, module: nn.Module) -> str:
    return f"{type(module).__name__} {name!r}" if name else f"{type(module).__name__} (the model itself)"


class _Listener:
    """Noise of size zero that keeps what it was given."""

    def __init__(self) -> None:
        self.sums: list[NDArray[np.float64]] = []

    def gaussian(
        self, values: NDArray[np.float64], sensitivity: float, multiplier: float, grid: float = GRID
    ) -> NDArray[np.float64]:
        self.sums.append(values.copy())
        return np.zeros_like(values)

    def discrete_gaussian(self, values: NDArray[np.int64], sensitivity: float, multiplier: float) -> NDArray[np.int64]:
        raise NotImplementedError

    def responses(self, labels: NDArray[np.int64], classes: int, label_epsilon: float) -> NDArray[np.int64]:
        raise NotImplementedError


def _compare_gradients(
    model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, mode: Literal["hooks", "ghost"]
) -> None:
    """What the mechanism adds up must be the clipped gradients of the records one by one, by plain torch."""
    from privacy.dp_training import DpSgd, UnsuitableModel, fit_privately

    alone = [_watch(model, inputs[row : row + 1], labels[row], 0).gradients for row in range(_RECORDS)]
    clipped = []
    for gradients in alone:
        flat = torch.cat([made.flatten() for made in gradients.values() if made is not None]).double()
        clipped.append(flat * min(1.0, _CLIP_NORM / float(flat.norm())))
    poisoned = inputs.clone()
    poisoned[:_WATCHED] = torch.nan
    for batch, expected in ((inputs, sum(clipped)), (poisoned, sum(clipped[_WATCHED:]))):
        listener = _Listener()
        fit_privately(
            model,
            torch.optim.SGD(model.parameters(), lr=0.0),
            records=_RECORDS,
            batch=lambda rows, batch=batch: batch[rows],  # type: ignore[misc]
            losses=lambda logits, rows: F.cross_entropy(logits, labels[rows], reduction="none"),
            spec=DpSgd(1.0, _CLIP_NORM, 1.0, 1, mode),
            entropy=SeededEntropy(0, "isolation"),
            device=torch.device("cpu"),
            noise=listener,
        )
        _same_sum(model, torch.from_numpy(listener.sums[0]), torch.as_tensor(expected), UnsuitableModel)


def _same_sum(model: nn.Module, made: torch.Tensor, expected: torch.Tensor, refuse: type[ValueError]) -> None:
    start, within = 0, _TOLERANCE * float(expected.abs().max())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = slice(start, start + parameter.numel())
            if not torch.allclose(made[part], expected[part], _TOLERANCE, within):
                raise refuse(f"per-record gradients of {name!r} are not the true ones: use another layer or mode")
            start += parameter.numel()
