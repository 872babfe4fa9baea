"""Linear layers in 8-bit floating point, e4m3: 4 bits of exponent, 3 of mantissa, numbers up to 448.

Micikevicius et al. 2022 (https://arxiv.org/abs/2209.05433). Every row of activations has a scale of its own,
found at run time, as has every row of weights: torchao calls that Float8DynamicActivationFloat8Weight with
PerRow. Tensor cores multiply such numbers; elsewhere the same rounding is computed in float32, slowly.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

TYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(TYPE).max
MULTIPLE = 16
"""Tensor cores take rows and columns of weights in tiles of so many."""
_LEAST = 1e-12
"""Of a row's largest magnitude: a row of zeros has a scale, too."""


class Fp8Linear(nn.Linear):
    """A linear whose weight is e4m3, its bias bfloat16."""

    scale: Tensor
    """float32 [rows, 1]: a row's weights are its e4m3 numbers times its scale."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features] of the same type; outputs are rounded to bfloat16."""
        rows, scale = rounded(x.reshape(-1, self.in_features).contiguous())
        if has_kernels(x.device):
            out = torch._scaled_mm(
                rows,
                self.weight.t(),
                scale_a=scale,
                scale_b=self.scale.t(),
                bias=self.bias,
                out_dtype=torch.bfloat16,
                use_fast_accum=True,
            )
        else:
            out = functional.linear(rows.float(), self.weight.float()) * scale * self.scale.t()
            out = (out if self.bias is None else out + self.bias.float()).to(torch.bfloat16)
        return out.to(x.dtype).reshape(*x.shape[:-1], self.out_features)


def has_kernels(device: torch.device) -> bool:
    """Whether tensor cores multiply e4m3 there: NVIDIA's from compute capability 8.9 on (Ada, Hopper)."""
    if device.type != "cuda":
        return False
    card = torch.cuda.get_device_properties(device)
    return (card.major, card.minor) >= (8, 9)


def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers [..., K] as e4m3 of that shape and float32 scales [..., 1]: the largest of a row becomes 448.

    The relative error of a number is at most 1/16; of those below 2^-6 of their scale the absolute one is at
    most 2^-10 of it.
    """
    rows = rows.float()
    scale = rows.abs().amax(-1, keepdim=True).clamp_min(_LEAST) / LARGEST
    # A quotient may pass 448 by its rounding, and what passes it far becomes NaN in some versions of torch.
    return (rows / scale).clamp(-LARGEST, LARGEST).to(TYPE), scale


def why_not(layer: nn.Module) -> str | None:
    """Why a layer cannot have the form, None where it can. Subclasses may read their weight otherwise."""
    if type(layer) is not nn.Linear:
        return "fp8 has a form of plain linears alone"
    if layer.in_features % MULTIPLE or layer.out_features % MULTIPLE:
        return f"{layer.in_features} to {layer.out_features} features are no multiples of {MULTIPLE}"
    return None


def convert(module: nn.Module, names: Iterable[str]) -> None:
    """Round the named layers of a float model, in place; those that share a weight go on sharing it.

    Raises:
        AttributeError: there is no layer of a name.
        ValueError: a layer has no such form.
    """
    shared: dict[Tensor, tuple[nn.Parameter, Tensor]] = {}
    for name in names:
        layer = module.get_submodule(name)
        if (why := why_not(layer)) is not None:
            raise ValueError(f"{name}: {why}")
        assert isinstance(layer, nn.Linear)
        if layer.weight not in shared:
            weight, scale = rounded(layer.weight.detach())
            shared[layer.weight] = nn.Parameter(weight, requires_grad=False), scale
        layer.weight, scale = shared[layer.weight]
        layer.register_buffer("scale", scale)
        if layer.bias is not None:
            layer.bias.data = layer.bias.data.to(torch.bfloat16)
        layer.__class__ = Fp8Linear
