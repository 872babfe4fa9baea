"""What a model costs on paper: multiply-accumulates and parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.config.signature import Signature
from orchestrator.models.build import example_rows


@dataclass(frozen=True)
class Cost:
    """Of one row through a model."""

    macs: int
    """Multiply-accumulates of convolutions, linear layers and attention; all else is left out."""
    params: int
    """Distinct parameters, tied ones once. Zeros count: they cost as much on dense kernels."""


def count(module: nn.Module, signature: Signature) -> Cost:
    """Run one row of `example_rows` and count what it multiplies. The module's mode is left as it was.

    The module is a float one (or exported from it): int8 kernels of a lowered graph are not seen.
    """
    training = {part: part.training for part in module.modules()}
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    row = example_rows(signature, 1).to(device)
    counter = FlopCounterMode(display=False)
    try:
        # Not module.eval(): a graph module from torch.export refuses it.
        for part in training:
            part.training = False
        # The fused attention kernel of the CPU is unknown to the counter; the plain one is two products.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            module(row)
    finally:
        for part, mode in training.items():
            part.training = mode
    return Cost(
        macs=counter.get_total_flops() // 2,
        params=sum(parameter.numel() for parameter in module.parameters()),
    )
