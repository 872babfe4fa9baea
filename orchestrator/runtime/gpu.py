"""Artifacts on a GPU: bfloat16 networks whose fp8 and int4 linears run in kernels of those numbers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from orchestrator.errors import ExecutionError
from orchestrator.runtime import fp8, weight_only
from orchestrator.runtime.bf16 import Bf16Body, round_numbers
from orchestrator.runtime.weight_only import WeightOnlyConv2d, WeightOnlyEmbedding, WeightOnlyLinear

_AS_THEY_ARE = (nn.modules.batchnorm._BatchNorm, fp8.Fp8Linear)
"""Parts whose float32 numbers CUDA's kernels take beside bfloat16 rows; those of layer norm do not."""

# tinygemm's: sizes that it takes, and how it is asked to lay out the weight.
_GROUPS = (32, 64, 128, 256)
_ROWS = 8
_INNER_TILES = 8
_COLUMNS = 16 * _INNER_TILES


class Int4Linear(nn.Linear):
    """A linear of four-bit integers, unpacked inside torch's tinygemm kernel. It has no `weight`."""

    packed: Tensor
    """int32, in the kernel's own order."""
    scales_and_zeros: Tensor
    """bfloat16 [in_features / group, out_features, 2]; the second is what an integer of 8 stands for."""

    def forward(self, x: Tensor) -> Tensor:
        """bfloat16 [..., in_features] -> [..., out_features]."""
        rows = x.reshape(-1, self.in_features).contiguous()
        group = self.in_features // len(self.scales_and_zeros)
        out: Tensor = torch.ops.aten._weight_int4pack_mm(rows, self.packed, group, self.scales_and_zeros)
        out = out if self.bias is None else out + self.bias
        return out.reshape(*x.shape[:-1], self.out_features)


def for_gpu(module: nn.Module, device: torch.device | str = "cuda") -> tuple[nn.Module, tuple[str, ...]]:
    """A copy of an artifact's module that is made for a GPU and lies there.

    A module with fp8 or weight-only layers, or of bfloat16, becomes a bfloat16 network between float32
    scaling and float32 outputs; a float32 module stays one. fp8 linears multiply in tensor cores, and int4
    linears whose shape allows in tinygemm: groups of 32 to 256, in_features a multiple of 128 and of the
    group, out_features one of 8. What is left is computed in bfloat16 (fp8 with its rounding, in float32).

    Args:
        module: rebuilt from an artifact, in eval mode; it is not changed.
        device: the GPU. On `cpu` the same network is made with every layer left: the reference.

    Returns:
        The copy, and the names of the fp8 and weight-only layers that run without a kernel of their numbers.

    Raises:
        ExecutionError: torch sees no such GPU, or the module is an int8 graph.
    """
    device = torch.device(device)
    if isinstance(module, fx.GraphModule):
        raise ExecutionError("int8 graphs run in kernels of CPUs", str(device), "use fp8 or int4_weight_only")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ExecutionError("torch sees no GPU here", str(device), "install its CUDA build, or run eager")
    module = copy.deepcopy(module).to(device)
    found, left = False, []
    for name, part in module.named_modules():
        if isinstance(part, fp8.Fp8Linear | WeightOnlyLinear | WeightOnlyConv2d | WeightOnlyEmbedding):
            found = True
            if not _to_kernel(part, device):
                left.append(name)
    body = module.get_submodule("body")
    if found or isinstance(body, Bf16Body):
        network = body.network if isinstance(body, Bf16Body) else body
        round_numbers(network, kept=_AS_THEY_ARE)
        module.body = Bf16Body(network)
    return module, tuple(left)


def _to_kernel(layer: nn.Module, device: torch.device) -> bool:
    """Give a layer the form of its numbers' kernel, in place, or one without; tells which."""
    if isinstance(layer, fp8.Fp8Linear):
        return fp8.has_kernels(device)
    if device.type == "cuda" and isinstance(layer, WeightOnlyLinear) and _fits(layer):
        _to_tinygemm(layer)
        return True
    weight_only.unfill(layer)
    return False


def _fits(layer: WeightOnlyLinear) -> bool:
    rows, columns = layer.weight.shape
    groups = layer.scales.shape[1]
    # int8 codes, or padded ones, have other sizes.
    whole = layer.codes.shape == (rows, columns // 2) and columns % groups == 0
    return whole and columns % _COLUMNS == 0 and rows % _ROWS == 0 and columns // groups in _GROUPS


def _to_tinygemm(layer: nn.Linear) -> None:
    codes, scales = layer.get_buffer("codes"), layer.get_buffer("scales")
    packed = torch.ops.aten._convert_weight_to_int4pack(_high_first(codes), _INNER_TILES)
    layer.register_buffer("packed", packed)
    layer.register_buffer("scales_and_zeros", _scales_and_zeros(scales))
    del layer.codes, layer.scales
    layer.register_parameter("weight", None)
    layer.__class__ = Int4Linear


def _high_first(codes: Tensor) -> Tensor:
    """Bytes with the first of two codes in the high half, where the kernel wants it; ours is in the low."""
    return ((codes & 15) << 4) | (codes >> 4)


def _scales_and_zeros(scales: Tensor) -> Tensor:
    """[groups, rows, 2] of scales [rows, groups]: a stored 8 is a weight of zero."""
    return torch.stack([scales, torch.zeros_like(scales)], dim=-1).transpose(0, 1).contiguous()
