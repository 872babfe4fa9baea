"""A model whose network runs in bfloat16 between float32 scaling and float32 outputs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)


class Bf16Body(nn.Module):
    """Casts at both ends of a bfloat16 network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """float32 in, float32 out."""
        out: Tensor = self.network(x.to(torch.bfloat16)).to(torch.float32)
        return out


def to_bf16(module: nn.Module) -> nn.Module:
    """Turn `module.body` to bfloat16, in place.

    Normalization keeps its float32 numbers, as in mixed-precision training (Micikevicius et al. 2017,
    https://arxiv.org/abs/1710.03740): they are few, kernels take them, and rounded variances cost accuracy.
    """
    body = module.get_submodule("body")
    kept = {id(part) for part in body.modules() if isinstance(part, _NORMS)}
    for part in body.modules():
        if id(part) not in kept:
            for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(torch.bfloat16)
    module.body = Bf16Body(body)
    return module


def to_float(module: nn.Module) -> nn.Module:
    """A copy of a `to_bf16` module with its rounded numbers in float32, for engines that cast themselves."""
    module = copy.deepcopy(module)
    body = module.get_submodule("body")
    assert isinstance(body, Bf16Body)
    module.body = body.network.float()
    return module


def has_bf16_kernels() -> bool:
    """Whether oneDNN multiplies in bfloat16 on this CPU (AVX-512, AMX, or Arm's extension).

    Without it torch takes plain loops: training a small convolutional net was more than ten times slower in
    bfloat16 than in float32 (AVX2, torch 2.13).
    """
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
