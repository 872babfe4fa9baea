"""Layers whose weights are kept as small integers and run in float: fewer bytes, the same speed.

The integers are unpacked once, when the layer is loaded: CPU kernels that unpack in every call are slower
than float ones (torchao 0.18: 67 to 281 us for one linear).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

SCALE_TYPE = torch.bfloat16
"""Has float32's range, so that no scale vanishes; codes are chosen after scales are rounded to it."""


class _WeightOnly(nn.Module):
    """Saves integers and scales in place of `weight`."""

    weight: Tensor
    codes: Tensor
    """int8 [rows, columns], or uint8 [rows, columns / 2] where four bits make two to a byte."""
    scales: Tensor
    """[rows, groups]"""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[f"{prefix}weight"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        codes, scales = state_dict.get(f"{prefix}codes"), state_dict.get(f"{prefix}scales")
        # Where they are missing or of another shape, super() says so.
        weight = self.weight.detach()
        if _alike(codes, self.codes) and _alike(scales, self.scales):
            weight = unpack(codes, scales, weight.shape)
        state_dict[f"{prefix}weight"] = weight
        try:
            super()._load_from_state_dict(state_dict, prefix, *args)
        finally:
            del state_dict[f"{prefix}weight"]


def _alike(given: Tensor | None, own: Tensor) -> TypeGuard[Tensor]:
    return given is not None and given.shape == own.shape


class WeightOnlyLinear(_WeightOnly, nn.Linear):
    """A linear of small integers."""


class WeightOnlyConv2d(_WeightOnly, nn.Conv2d):
    """A convolution of small integers."""


class WeightOnlyEmbedding(_WeightOnly, nn.Embedding):
    """An embedding of small integers."""


_FORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: WeightOnlyLinear,
    nn.Conv2d: WeightOnlyConv2d,
    nn.Embedding: WeightOnlyEmbedding,
}

_PLAIN = {form: plain for plain, form in _FORMS.items()}


def layers(module: nn.Module) -> dict[str, nn.Module]:
    """The layers that have such a form, by name; subclasses may read their weight in another way."""
    return {name: part for name, part in module.named_modules() if type(part) in _FORMS}


def converted(module: nn.Module) -> list[nn.Module]:
    """The layers that were given their form."""
    return [part for part in module.modules() if type(part) in _PLAIN]


def convert(module: nn.Module, groups: Mapping[str, int], bits: int) -> None:
    """Give the named layers the form, in place; `fill` or loading sets their numbers.

    Args:
        module: a float model.
        groups: layer -> how many weights in a row share a scale.
        bits: 8 or 4.

    Raises:
        KeyError: a layer of that name has no such form.
    """
    known = layers(module)
    for name, group in groups.items():
        layer = known[name]
        assert isinstance(layer.weight, Tensor)
        rows, columns = layer.weight.flatten(1).shape
        width = -(-columns // group) * group
        shape, kind = ((rows, width), torch.int8) if bits == 8 else ((rows, -(-width // 2)), torch.uint8)
        layer.register_buffer("codes", torch.zeros(shape, dtype=kind))
        layer.register_buffer("scales", torch.zeros((rows, width // group), dtype=SCALE_TYPE))
        layer.__class__ = _FORMS[type(layer)]


def fill(layer: nn.Module, codes: Tensor, scales: Tensor) -> None:
    """Set a converted layer's codes, int8 [rows, whole groups], and scales [rows, groups]."""
    packed = codes if layer.codes.dtype == torch.int8 else pack(codes)
    with torch.no_grad():
        layer.codes.copy_(packed)  # type: ignore[operator]
        layer.scales.copy_(scales)  # type: ignore[operator]
        layer.weight.copy_(unpack(layer.codes, layer.scales, layer.weight.shape))  # type: ignore


def unfill(layer: nn.Module) -> None:
    """Make a converted layer a plain one again, in place; it keeps its unpacked weight."""
    del layer.codes, layer.scales
    layer.__class__ = _PLAIN[type(layer)]


class _Unpacking(nn.Module):
    """Unpacks its weight whenever it is read."""

    codes: Tensor
    scales: Tensor
    shape: torch.Size

    @property
    def weight(self) -> Tensor:
        return unpack(self.codes, self.scales, self.shape)


_UNPACKING = {form: type("Unpacking", (_Unpacking, plain), {}) for form, plain in _PLAIN.items()}


def unpacking(module: nn.Module) -> nn.Module:
    """A copy whose converted layers hold integers and scales alone, and unpack them in every call: what a
    traced program must hold to be small."""
    module = copy.deepcopy(module)
    for layer in converted(module):
        assert isinstance(layer.weight, Tensor)
        shape = layer.weight.shape
        del layer.weight
        layer.__class__ = _UNPACKING[type(layer)]
        assert isinstance(layer, _Unpacking)
        layer.shape = shape
    return module


def pack(codes: Tensor) -> Tensor:
    """Codes -8 to 7 [rows, columns] as bytes [rows, ceil(columns / 2)], the first in the low half."""
    if codes.shape[1] % 2:
        codes = nn.functional.pad(codes, (0, 1))
    halves = (codes + 8).to(torch.uint8).reshape(len(codes), -1, 2)
    return halves[..., 0] | (halves[..., 1] << 4)


def unpack(codes: Tensor, scales: Tensor, shape: torch.Size) -> Tensor:
    """Float32 weights of `shape` [rows, ...] from stored codes and scales."""
    if codes.dtype == torch.uint8:
        codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1).to(torch.int8) - 8
    groups = scales.shape[1]
    whole = codes.shape[1] // groups * groups  # an odd width has one half byte to spare
    values = codes[:, :whole].reshape(len(codes), groups, -1).float() * scales.float()[..., None]
    return values.flatten(1)[:, : shape[1:].numel()].reshape(shape)
