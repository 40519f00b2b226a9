"""DP-SGD (Abadi et al. 2016) for any of our models: a private phase on a plain model, plain again when it ends.

Opacus has the rules for per-record gradients and the optimiser around a step; masks and noise are drawn here, from a
stream that says whether it is private. Public steps are plain torch, before and after, never inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from opacus.grad_sample import GradSampleModule  # type: ignore[import-untyped]
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient, prepare_layer  # type: ignore[import-untyped]
from opacus.layers import DPGRU, DPLSTM, DPRNN, DPMultiheadAttention  # type: ignore[import-untyped]
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping  # type: ignore[import-untyped]
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from privacy.dp_spec import DpLog, DpSgd, UnsuitableModel
from privacy.mechanisms.mechanism import DrawnNoise, Noise, whole
from privacy.noise import Draw, Entropy

__all__ = ["DpLog", "DpSgd", "UnsuitableModel", "check_layers", "fit_privately"]

Batch = Callable[[torch.Tensor], torch.Tensor]
Losses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# Opacus' rule for a layer: (layer, its inputs, gradients of its output) to [b, ...] gradients of its parameters.
Rule = Callable[[Any, list[torch.Tensor], torch.Tensor], dict[torch.Tensor, torch.Tensor]]

# Noised sums are rounded to the power of two that is about this share of the noise: see mechanism.GRID.
_GRID_SHARE = 20
# Added to norms before dividing by them, as Opacus does.
_NORM_FLOOR = 1e-6
# glibc hands blocks above a threshold back to the kernel, which clears each page again for the next step, at a third of
# a step's time. Freeing one block of almost 32 MiB, its limit, raises the threshold to that for the process.
_LARGEST_BLOCK = 2**25 - 2**17
# Records whose windows are copied at once: they stay in a core's cache.
_WINDOWS = 8
_DP_LAYERS = {nn.LSTM: DPLSTM, nn.GRU: DPGRU, nn.RNN: DPRNN, nn.MultiheadAttention: DPMultiheadAttention}


def check_layers(model: nn.Module) -> None:
    """Refuse layers that are known to be wrong here. distillation.isolation.check_model looks at what the model does.

    Raises:
        UnsuitableModel: batch statistics, layers without per-record gradients, buffers beside parameters, parameters
            that are not float32, none at all.
    """
    for name, module in model.named_modules():
        told = f"{type(module).__name__} {name!r}"
        for kind, instead in _DP_LAYERS.items():
            if isinstance(module, kind):
                raise UnsuitableModel(f"{told} has no per-record gradients: use opacus.layers.{instead.__name__}")
        if isinstance(module, _BatchNorm) or (isinstance(module, _NormBase) and module.track_running_stats):
            raise UnsuitableModel(f"{told} keeps statistics over records: use nn.GroupNorm")
        own = list(module.parameters(recurse=False))
        if any(parameter.dtype != torch.float32 for parameter in own):
            raise UnsuitableModel(f"{told} has {own[0].dtype} parameters: gradients are clipped in float32")
        if own and any(True for _ in module.buffers()):
            raise UnsuitableModel(f"{told} has buffers beside its parameters: move them to a module of their own")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UnsuitableModel(f"{type(model).__name__} trains no parameter")


def fit_privately(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    records: int,
    batch: Batch,
    losses: Losses,
    spec: DpSgd,
    entropy: Entropy,
    device: torch.device,
    noise: Noise | None = None,
) -> DpLog:
    """Train in place by DP-SGD; pay for `spec.event()` first.

    Args:
        model: float32, maps [b, ...] to [b, classes]; distillation.isolation.check_model has accepted it.
        optimizer: any of torch's, over exactly the model's trainable parameters; it keeps its state over phases.
        records: n, public; rows are numbered 0 to n - 1.
        batch: [b] rows (int64, on the CPU) to the model's inputs [b, ...].
        losses: [b, classes] logits and the rows, both on `device`, to [b] losses, of which losses[i] depends on record
            i only. Calling the model in here is refused.
        spec: noise, clipping, sampling.
        entropy: where masks and noise come from; torch's generators have no part in either.
        device: where the model is. Noise is made on the CPU and moved: generators there hold less entropy.
        noise: instead of that of `entropy`, to record or replay it; refused if `entropy` is private.

    Returns:
        Steps and noise draws, each `spec.steps`. Losses are not among them: they are releases.

    Raises:
        UnsuitableModel: a layer that per-record gradients cannot be had of.
        ValueError: other parameters in the optimiser, or inputs or losses that are not one a record.

    Guarantees:
        A step draws each record with probability q, on its own, adds up the drawn records' gradients, each shrunk to
        clip_norm in float32, adds normal noise of standard deviation clip_norm * noise_multiplier to every parameter,
        divides by the constant q * n and steps; steps that drew nobody do the same. A record whose gradient has a norm
        that is not finite adds nothing to any parameter. One record taken out moves a step's sum by at most clip_norm.
        The same bytes of a seeded entropy give the same weights, bit for bit, on one CPU and one number of threads.
        Model and optimiser are plain afterwards, with the training flags they had.
    """
    whole("records", records, 1)
    check_layers(model)
    if noise is not None and entropy.private:
        raise ValueError("noise is given though entropy is private: noise from elsewhere is for seeded simulations")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    held = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad]
    if {*map(id, trained)} != {*map(id, held)}:
        raise ValueError(f"optimizer holds {len(held)} parameters, not the {len(trained)} that the model trains")
    draw = Draw(entropy)
    with _wrapped(model, optimizer, spec, records, noise or DrawnNoise(draw)) as (engine, private):
        losses_of = partial(_losses, engine, batch, losses, device)
        if records > 1:
            _refuse_shared_losses(engine, batch, losses, device)
        for _ in range(spec.steps):
            parts = _sampled(draw, records, spec.sample_rate).split(spec.physical_batch)
            for number, rows in enumerate(parts, 1):
                private.signal_skip_step(number < len(parts))
                _differentiate(engine, spec, rows, losses_of)
                private.step()
                private.zero_grad(set_to_none=True)
        log = DpLog(private.stepped, private.noised)
    if not log.steps == log.noise_draws == spec.steps:
        raise RuntimeError(f"{log.steps} steps and {log.noise_draws} noise draws, {spec.steps} are paid for")
    return log


def _sampled(draw: Draw, records: int, rate: float) -> torch.Tensor:
    """Poisson sampling: each row on its own, with probability `rate`; in ascending order, often none."""
    return torch.from_numpy((draw.uniform((records,)) < rate).nonzero()[0])


def _losses(engine: _Engine, batch: Batch, losses: Losses, device: torch.device, rows: torch.Tensor) -> torch.Tensor:
    """[b] losses of the rows."""
    inputs = batch(rows).to(device)
    if len(inputs) != len(rows):
        raise ValueError(f"batch gave {len(inputs)} inputs for {len(rows)} rows: one a record expected")
    each = losses(engine(inputs), rows.to(device))
    if each.shape != (len(rows),):
        raise ValueError(f"losses have shape {list(each.shape)} for {len(rows)} records: use reduction='none'")
    return each


def _refuse_shared_losses(engine: _Engine, batch: Batch, losses: Losses, device: torch.device) -> None:
    """Refuse losses that mix records: one record's logits become NaN, and the other's loss must not notice."""
    rows = torch.arange(2)
    with torch.no_grad():
        logits, places = torch.zeros_like(engine(batch(rows).to(device))), rows.to(device)
        alone = losses(logits, places)
        logits[0] = math.nan
        if not torch.equal(losses(logits, places)[1:], alone[1:]):
            raise ValueError("losses[i] changes with another record's logits: it must depend on record i only")


def _differentiate(engine: _Engine, spec: DpSgd, rows: torch.Tensor, losses_of: Batch) -> None:
    """Leave per-record gradients (hooks) or the sum of clipped ones (ghost) where Opacus' optimisers look for them."""
    if not len(rows):
        engine.nothing()
    elif spec.mode == "hooks":
        engine.per_record(losses_of(rows))
    else:
        sound = engine.clipped_sum(losses_of(rows), spec.clip_norm)
        if not sound.all():
            # What a broken record adds is 0 * NaN, so the others run without it.
            _differentiate(engine, spec, rows[sound.cpu()], losses_of)


@contextmanager
def _wrapped(
    model: nn.Module, optimizer: torch.optim.Optimizer, spec: DpSgd, records: int, noise: Noise
) -> Iterator[tuple[_Engine, _Noised]]:
    """Model and optimiser under Opacus, in training mode and full float32; plain afterwards, whatever happened."""
    flags = [(module, module.training) for module in model.modules()]
    precision, device = torch.get_float32_matmul_precision(), next(model.parameters()).device
    cudnn = torch.backends.cudnn
    torch.empty(_LARGEST_BLOCK, dtype=torch.uint8)
    optimizer.zero_grad(set_to_none=True)
    engine = _Engine(model)
    private = (_Hooks if spec.mode == "hooks" else _Ghost)(optimizer, spec, records, noise)
    counter = optimizer.register_step_post_hook(private.count)
    torch.set_float32_matmul_precision("highest")
    try:
        model.train()
        with (
            torch.autocast(device.type, enabled=False),
            cudnn.flags(cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, allow_tf32=False),
        ):
            yield engine, private
    finally:
        counter.remove()
        torch.set_float32_matmul_precision(precision)
        engine.to_standard_module()
        optimizer.zero_grad(set_to_none=True)
        for parameter in private.params:
            del parameter.summed_grad
        for module, training in flags:
            module.training = training


@dataclass(frozen=True, slots=True, eq=False)
class _Tap:
    """One call of a layer that has trainable parameters of its own."""

    layer: nn.Module
    inputs: list[torch.Tensor]
    output: torch.Tensor
    version: int


def _conv2d(layer: nn.Conv2d, inputs: list[torch.Tensor], backprops: torch.Tensor) -> dict[torch.Tensor, torch.Tensor]:
    """The rule for convolutions; windows are copied with channels last and few at a time, as Opacus' rule does not.

    Inputs are [b, channels, height, width] and backprops [b, filters, rows, columns].
    """
    if isinstance(layer.padding, str) or layer.groups != 1 or layer.padding_mode != "zeros":
        theirs: dict[torch.Tensor, torch.Tensor] = GradSampleModule.GRAD_SAMPLERS[nn.Conv2d](layer, inputs, backprops)
        return theirs
    (top, left), (down, across), (high, wide) = layer.padding, layer.stride, layer.dilation
    padded = F.pad(inputs[0].permute(0, 2, 3, 1), (0, 0, left, left, top, top)).contiguous()
    record, row, column, _ = padded.stride()
    positions, kernel = backprops.shape[2:], (*layer.kernel_size, layer.in_channels)
    strides = (record, row * down, column * across, row * high, column * wide, 1)
    windows, flat = padded.as_strided((len(padded), *positions, *kernel), strides), backprops.flatten(2)
    weights = flat.new_empty((len(flat), *layer.weight.shape))
    for seen, back, out in zip(*(each.split(_WINDOWS) for each in (windows, flat, weights)), strict=True):
        made = back @ seen.reshape(len(back), positions.numel(), -1)
        out.copy_(made.view(len(back), -1, *kernel).permute(0, 1, 4, 2, 3))
    samples: dict[torch.Tensor, torch.Tensor] = {layer.weight: weights}
    return samples if layer.bias is None else {**samples, layer.bias: flat.sum(2)}


class _Engine(GradSampleModule):  # type: ignore[misc]
    """Opacus' per-record gradients, from a backward pass that ends at the layers' outputs.

    Opacus hooks into a whole backward pass, which computes each weight's gradient for nothing, and copies every
    per-record gradient twice. Here a forward hook keeps what a layer took and gave, autograd gives the gradients of
    the outputs, and Opacus' rule for the layer makes per-record gradients of both.
    """

    GRAD_SAMPLERS: ClassVar[dict[type[nn.Module], Rule]] = {**GradSampleModule.GRAD_SAMPLERS, nn.Conv2d: _conv2d}

    def __init__(self, model: nn.Module) -> None:
        self._taps: list[_Tap] = []
        self._open = False
        super().__init__(model, loss_reduction="sum", strict=True)

    def add_hooks(self, **_: Any) -> None:
        """Called by Opacus: watch the layers that have trainable parameters."""
        self._names: dict[nn.Module, str] = {module: name for name, module in self._module.named_modules()}
        layers = [layer for layer in self.iterate_submodules(self._module) if type(layer) not in (DPRNN, DPLSTM, DPGRU)]
        for layer in layers:
            if type(layer) not in self.GRAD_SAMPLERS:
                prepare_layer(layer)  # copies the layer, so before it has a hook
        self.autograd_grad_sample_hooks = [layer.register_forward_hook(self._tap) for layer in layers]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The model's logits; the one forward pass that gradients are taken of."""
        self._taps.clear()
        self._open = True
        logits: torch.Tensor = self._module(inputs)
        self._open = False
        return logits

    def nothing(self) -> None:
        """What a batch without records adds."""
        for parameter in filter(lambda p: p.requires_grad, self._module.parameters()):
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
            parameter.grad = torch.zeros_like(parameter)

    def per_record(self, losses: torch.Tensor) -> None:
        """Put [b, ...] gradients of the losses into each parameter's grad_sample."""
        for tap, backprops in zip(self._taps, self._backprops(losses), strict=True):
            for parameter, samples in self._samples(tap, backprops, len(losses)).items():
                before = parameter.grad_sample
                parameter.grad_sample = samples if before is None else before + samples

    def clipped_sum(self, losses: torch.Tensor, clip_norm: float) -> torch.Tensor:
        """Put the sum of clipped gradients into each parameter's grad, without keeping any record's (Bu et al. 2023).

        Returns:
            [b] whether the record's norm is finite. If one is not, nothing was put anywhere.
        """
        backprops = self._backprops(losses, keep=True)
        taps = list(zip(self._taps, backprops, strict=True))
        squares = torch.stack([self._squares(tap, backprop, len(losses)) for tap, backprop in taps])
        norms = squares.sum(dim=0).sqrt()
        sound = torch.isfinite(norms)
        if sound.all():
            shares = (clip_norm / (norms + _NORM_FLOOR)).clamp(max=1.0)
            for tap, backprop in taps:
                own = [p for p in tap.layer.parameters(type(tap.layer) not in self.GRAD_SAMPLERS) if p.requires_grad]
                shrunk = backprop * shares.view(-1, *[1] * (backprop.dim() - 1))
                for parameter, grad in zip(own, torch.autograd.grad(tap.output, own, shrunk, True), strict=True):
                    if parameter.grad is not None:
                        raise UnsuitableModel(f"{self._told(tap.layer)} runs twice or shares weights: use mode='hooks'")
                    parameter.grad = grad
        return sound

    def _tap(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if not self._open:
            raise RuntimeError(
                f"{self._told(layer)} ran outside its step's forward pass: losses may use logits and rows alone, and "
                "public rows are learnt after the private phase"
            )
        if output.dtype != torch.float32:
            raise UnsuitableModel(f"{self._told(layer)} computes in {output.dtype}: gradients are clipped in float32")
        self._taps.append(_Tap(layer, [given.detach() for given in inputs], output, output._version))

    def _backprops(self, losses: torch.Tensor, keep: bool = False) -> tuple[torch.Tensor, ...]:
        """The losses' gradients by each layer's outputs."""
        for tap in self._taps:
            if tap.output._version != tap.version:
                raise UnsuitableModel(f"{self._told(tap.layer)} has its output changed in place: use inplace=False")
        outputs = [tap.output for tap in self._taps]
        made = torch.autograd.grad(losses.sum(), outputs, retain_graph=keep, allow_unused=True)
        for tap, backprops in zip(self._taps, made, strict=True):
            if backprops is None:
                raise UnsuitableModel(f"{self._told(tap.layer)} has no part in the logits: remove it")
        return made

    def _samples(self, tap: _Tap, backprops: torch.Tensor, records: int) -> dict[Any, torch.Tensor]:
        rule = self.GRAD_SAMPLERS.get(type(tap.layer), ft_compute_per_sample_gradient)
        made = {p: each.detach() for p, each in rule(tap.layer, tap.inputs, backprops).items() if p.requires_grad}
        for samples in made.values():
            if len(samples) != records:
                raise UnsuitableModel(f"{self._told(tap.layer)} has {len(samples)} gradients for {records} records")
        return made

    def _squares(self, tap: _Tap, backprops: torch.Tensor, records: int) -> torch.Tensor:
        """[b] squared norms of a layer's gradients."""
        if type(tap.layer) is nn.Linear and backprops.dim() == 2:
            # The gradient is an outer product, whose norm is the product of norms (Goodfellow 2015). Longer inputs sum
            # several, whose norm from inner products loses all digits where they cancel.
            given = tap.inputs[0].square().sum(1) * tap.layer.weight.requires_grad
            bias = tap.layer.bias is not None and tap.layer.bias.requires_grad
            return backprops.square().sum(1) * (given + bias)
        samples = self._samples(tap, backprops, records).values()
        return torch.stack([each.reshape(records, -1).square().sum(1) for each in samples]).sum(dim=0)

    def _told(self, layer: nn.Module) -> str:
        return f"{type(layer).__name__} {self._names[layer]!r}"


class _Noised(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimiser with our noise, and counters."""

    def __init__(self, optimizer: torch.optim.Optimizer, spec: DpSgd, records: int, noise: Noise) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=spec.noise_multiplier,
            max_grad_norm=spec.clip_norm,
            expected_batch_size=spec.sample_rate * records,
            loss_reduction="mean",
        )
        self._noise = noise
        self._grid = 2.0 ** (math.floor(math.log2(spec.clip_norm * spec.noise_multiplier)) - _GRID_SHARE)
        self.stepped = self.noised = 0

    def count(self, *_: object) -> None:
        """The plain optimiser has stepped."""
        self.stepped += 1

    def add_noise(self) -> None:
        """One draw for all parameters together."""
        sums = [parameter.summed_grad for parameter in self.params]
        flat = torch.cat([each.flatten() for each in sums]).double().cpu().numpy()
        noised = torch.from_numpy(self._noise.gaussian(flat, self.max_grad_norm, self.noise_multiplier, self._grid))
        parts = noised.to(sums[0]).split([each.numel() for each in sums])
        for parameter, part in zip(self.params, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        self.noised += 1


class _Hooks(_Noised):
    def clip_and_accumulate(self) -> None:
        """Add up shrunk gradients; those of records whose norm is not finite are left out, in all parameters."""
        flat = [p.grad_sample.reshape(len(p.grad_sample), p.numel()) for p in self.params]
        norms = torch.stack([each.norm(dim=1) for each in flat]).norm(dim=0)
        sound = torch.isfinite(norms)
        if not sound.all():
            flat, norms = [each[sound] for each in flat], norms[sound]
        shares = (self.max_grad_norm / (norms + _NORM_FLOOR)).clamp(max=1.0)
        for parameter, each in zip(self.params, flat, strict=True):
            total = (shares @ each).view_as(parameter)
            parameter.summed_grad = total if parameter.summed_grad is None else parameter.summed_grad + total


class _Ghost(_Noised, DPOptimizerFastGradientClipping):  # type: ignore[misc]
    """Gradients come clipped and summed."""
