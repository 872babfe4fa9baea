"""A model whose network runs in bfloat16 between float32 scaling and float32 outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d)


class Bf16Body(nn.Module):
    """Casts at both ends of a bfloat16 network.

    Integers reach it as they are, and so does the input of a network that says `takes_float32`: it needs
    exact numbers (codes, sound) and casts what it made of them.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.exact = any(getattr(part, "takes_float32", False) for part in network.modules())

    def forward(self, x: Tensor) -> Tensor:
        """float32 or integers in, float32 out."""
        if x.is_floating_point() and not self.exact:
            x = x.to(torch.bfloat16)
        out: Tensor = self.network(x).to(torch.float32)
        return out


def to_bf16(module: nn.Module) -> nn.Module:
    """Turn `module.body` to bfloat16, in place.

    Normalization keeps its float32 numbers, as in mixed-precision training (Micikevicius et al. 2017,
    https://arxiv.org/abs/1710.03740): they are few, kernels take them, and rounded variances cost accuracy.
    """
    body = module.get_submodule("body")
    round_numbers(body, kept=_NORMS)
    module.body = Bf16Body(body)
    return module


def round_numbers(network: nn.Module, kept: tuple[type[nn.Module], ...]) -> None:
    """Parameters and buffers to bfloat16, in place, but those of parts of a `kept` class, or that say so
    (`keeps_float32`)."""
    for part in network.modules():
        if not isinstance(part, kept) and not getattr(part, "keeps_float32", False):
            for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(torch.bfloat16)


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


@contextmanager
def without_strided_points(module: nn.Module) -> Iterator[None]:
    """Within it narrow strided 1x1 convolutions take their pixels first, then step by one: the same numbers.

    oneDNN's bfloat16 gradient of such a layer with fewer than 16 input channels writes past its memory where
    several threads share an odd batch, and the process dies (torch 2.13, AVX-512).
    """
    found = [
        part
        for part in module.modules()
        if type(part) is nn.Conv2d
        and part.kernel_size == (1, 1)
        and part.padding == (0, 0)
        and part.stride != (1, 1)
        and part.in_channels // part.groups < 16
    ]
    strides = [part.stride for part in found]
    hooks = [part.register_forward_pre_hook(_taker(*part.stride)) for part in found]
    try:
        for part in found:
            part.stride = (1, 1)
        yield
    finally:
        for part, stride, hook in zip(found, strides, hooks, strict=True):
            part.stride = stride
            hook.remove()


def _taker(down: int, right: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda _, inputs: (inputs[0][..., ::down, ::right],)
