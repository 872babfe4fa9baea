"""Quantization-aware training: a float model learns to bear the rounding that a number type will bring.

The rounding is simulated in the model's own layers and taken out again, and the type's step then quantizes
the result like any other float model. So the deployed graph is the very one of post-training quantization;
the graph that PT2E makes from its own training form ran 2.6 to 2.9 times slower (torchao 0.18: ReLUs
unfused).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.compression.distill import fine_tune
from orchestrator.compression.quantize import CALIBRATION_BATCH
from orchestrator.compression.step import Context, State, apply_step, copy_of, stays_float
from orchestrator.compression.weight_only import BITS, DEFAULT_GROUPS, groups_of, rounded_codes
from orchestrator.config.steps import Qat
from orchestrator.errors import CompressionError
from orchestrator.models.base import tied_to_float
from orchestrator.runtime import int8
from orchestrator.runtime.weight_only import unpack

FOLLOW = 0.01
"""Share of a training batch in the range of an activation."""
WEIGHT_LEVELS = 127.5
"""Scale of a channel: its largest weight over this, as the X86 quantizer has it."""


@apply_step.register
def train_quantized(step: Qat, state: State, context: Context) -> State:
    """Fine-tune with convolutions and linears rounded in the forward pass as the number type will round them.

    Jacob et al. 2018 (https://arxiv.org/abs/1712.05877), section 3: gradients pass the rounding as if it were
    not there. For int8 inputs are rounded as weights are; their ranges follow a moving average, and batch
    norm uses its running statistics, as it will when it is folded.

    Raises:
        CompressionError: calibration (for int8), train or validation rows are missing, or there is no layer
            to round.
        TrainingError: the training fails.
    """
    if step.to != "int8_static":
        module, group, bits = copy_of(state.module), step.group or DEFAULT_GROUPS[step.to], BITS[step.to]
        with weight_rounding(module, group, bits, step.keep_float) as left:
            epochs = fine_tune(module, step.training, state, context, checkpoint=context.checkpoint)
        return state.after(step, module.eval(), {"epochs": epochs} | stays_float((), left))
    if context.calibration is None or len(context.calibration) == 0:
        raise CompressionError("qat needs calibration rows", fix="give the data a calibration part")
    module = copy_of(state.module)
    rows = torch.tensor(context.calibration[: step.rows])
    _, left = _layers(module, step.keep_float)
    with rounding(module, rows, step.reduce_range or int8.reduce_range(), step.keep_float):
        epochs = fine_tune(module, step.training, state, context, checkpoint=context.checkpoint)
    return state.after(step, module.eval(), {"epochs": epochs} | stays_float((), left))


def _layers(module: nn.Module, keep_float: Collection[str]) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Layers that compute as int8 kernels will, and those that stay float unasked, with the reason."""
    kinds: tuple[type[nn.Module], ...] = (nn.modules.conv._ConvNd, nn.Linear, *_FORMS)
    free = [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, kinds) and not int8.is_within(name, keep_float)
    ]
    found = {name: part for name, part in free if type(part) in _FORMS}
    left = {name: f"qat has no form of {type(part).__name__}" for name, part in free if name not in found}
    left |= tied_to_float(module, found)
    return {name: part for name, part in found.items() if name not in left}, left


@contextmanager
def rounding(
    module: nn.Module, rows: Tensor, narrow: bool, keep_float: Collection[str] = ()
) -> Iterator[None]:
    """Within it, the module's convolutions and linears compute as int8 kernels will, but differentiably.

    Args:
        module: changed in place, and plain again afterwards.
        rows: raw rows [N, ...] from which activations take their first ranges.
        narrow: activations have 7 bits (CPUs without VNNI).
        keep_float: names of layers, or of modules of layers, that are not rounded.

    Raises:
        CompressionError: no layer would be rounded, or there is none of a name.
    """
    int8.check_names(module, keep_float)
    parts = list(_layers(module, keep_float)[0].values())
    if not any(isinstance(part, nn.Conv2d | nn.Linear) for part in parts):
        raise CompressionError("qat found no convolution or linear to round", type(module).__name__)
    plain = [(part, type(part)) for part in parts]
    for part, kind in plain:
        part.__class__ = _FORMS[kind]
        if isinstance(part, _Rounding):
            part.start(127 if narrow else 255)
    try:
        with torch.no_grad():
            for batch in rows.split(CALIBRATION_BATCH):
                module(batch)
        for part, _ in plain:
            if isinstance(part, _Rounding):
                part.calibrating = False
        yield
    finally:
        for part, kind in plain:
            if isinstance(part, _Rounding):
                part.stop()
            part.__class__ = kind


@contextmanager
def weight_rounding(
    module: nn.Module, group: int | None, bits: int, keep_float: Collection[str] = ()
) -> Iterator[dict[str, str]]:
    """Within it, the module's layers compute with the weights that a weight-only type will give them; those
    that it passes over come with the reason.

    Args:
        module: changed in place, and plain again afterwards.
        group: weights of a row that share a scale.
        bits: of a weight.
        keep_float: names of layers, or of modules of layers, that are not rounded.

    Raises:
        CompressionError: no layer would become smaller, or there is none of a name.
    """
    changed = []
    groups, left = groups_of(module, group, bits, keep_float)
    for name, own in groups.items():
        layer = module.get_submodule(name)
        changed.append((layer, type(layer)))
        layer.__class__ = _SMALL_FORMS[type(layer)]
        assert isinstance(layer, _SmallWeight)
        layer.group, layer.bits = own, bits
    try:
        yield left
    finally:
        for layer, kind in changed:
            del layer.group, layer.bits
            layer.__class__ = kind


class _SmallWeight(nn.Module):
    """Computes with its weight as it will be kept; gradients pass as if it were not rounded."""

    weight: Tensor
    group: int
    bits: int

    def rounded_weight(self) -> Tensor:
        kept = unpack(*rounded_codes(self.weight.detach(), self.group, self.bits), self.weight.shape)
        return self.weight + (kept - self.weight).detach()


class _SmallConv2d(_SmallWeight, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(x, self.rounded_weight(), self.bias)
        return out


class _SmallLinear(_SmallWeight, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.rounded_weight(), self.bias)


class _SmallEmbedding(_SmallWeight, nn.Embedding):
    def forward(self, x: Tensor) -> Tensor:
        return functional.embedding(x, self.rounded_weight(), self.padding_idx)


_SMALL_FORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _SmallConv2d,
    nn.Embedding: _SmallEmbedding,
    nn.Linear: _SmallLinear,
}


class _Rounding(nn.Module):
    """Rounds input and weight; the input's range is found first, then followed while training."""

    weight: Tensor
    low: Tensor
    high: Tensor
    seen: Tensor
    calibrating: bool
    """Whether ranges take in all that is seen."""

    def start(self, levels: int) -> None:
        self.levels, self.calibrating = levels, True
        for name in ("low", "high", "seen"):
            # Part of the module's state meanwhile: a training that goes on follows the ranges it had reached.
            self.register_buffer(name, torch.zeros((), device=self.weight.device))

    def stop(self) -> None:
        for name in ("low", "high", "seen"):
            del self._buffers[name]
        del self.levels, self.calibrating

    def rounded_input(self, x: Tensor) -> Tensor:
        x = x.float()
        self._follow(x.detach())
        scale = ((self.high - self.low) / self.levels).clamp_min(int8.LEAST_SCALE)
        zero = (-self.low / scale).round().clamp(0, self.levels).int()
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, self.levels)

    def rounded_weight(self) -> Tensor:
        weight = self.weight.float()
        largest = weight.detach().flatten(1).abs().amax(1)
        scale = (largest / WEIGHT_LEVELS).clamp_min(int8.LEAST_SCALE)
        return torch.fake_quantize_per_channel_affine(
            weight, scale, torch.zeros_like(scale, dtype=torch.int32), 0, -128, 127
        )

    def _follow(self, x: Tensor) -> None:
        known = bool(self.seen)
        if known and not (self.training or self.calibrating):
            return
        low, high = x.amin().clamp_max(0), x.amax().clamp_min(0)
        if known and self.calibrating:
            low, high = torch.minimum(low, self.low), torch.maximum(high, self.high)
        share = FOLLOW if known and not self.calibrating else 1.0
        self.low.lerp_(low, share)
        self.high.lerp_(high, share)
        self.seen.fill_(1)


class _RoundingConv2d(_Rounding, nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(self.rounded_input(x), self.rounded_weight(), self.bias)
        return out


class _RoundingLinear(_Rounding, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.rounded_input(x), self.rounded_weight(), self.bias)


class _SettledNorm(nn.BatchNorm2d):
    """Normalizes by its running statistics even in training."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


_FORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _RoundingConv2d,
    nn.Linear: _RoundingLinear,
    nn.BatchNorm2d: _SettledNorm,
}
