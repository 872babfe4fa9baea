"""Clipping: outlying weights are cut to a limit, so that rounding to few bits costs the others less."""

from __future__ import annotations

import torch
from torch import Tensor

from orchestrator.compression.step import Context, State, apply_step, copy_of, weights_of
from orchestrator.config.steps import Clipping
from orchestrator.errors import CompressionError

_FRACTIONS = torch.linspace(1.0, 0.2, 81)
"""Of the largest weight: the limits that method mse tries."""


@apply_step.register
def clip(step: Clipping, state: State, context: Context) -> State:  # noqa: ARG001
    """Cut the weights of convolutions and linears to a limit.

    Method mse: Banner et al. 2019 (https://arxiv.org/abs/1810.05723) look for the limit whose rounding
    error is least; here by trying, since weights are at hand.

    Raises:
        CompressionError: the model has no such weight, or all are within the limit already.
    """
    module = copy_of(state.module)
    weights = weights_of(module)
    if not weights:
        raise CompressionError("the model has no convolution or linear to clip", type(module).__name__)
    clipped, total = {}, 0
    with torch.no_grad():
        for name, weight in weights.items():
            limit = limits(weight, step)
            clipped[name] = int((weight.abs() > limit).sum())
            total += weight.numel()
            weight.copy_(weight.clamp(-limit, limit))
    if not any(clipped.values()):
        raise CompressionError("no weight lies beyond its limit", step.threshold or step.method, "clip lower")
    return state.after(step, module, {"clipped": sum(clipped.values()), "weights": total, "layers": clipped})


def limits(weight: Tensor, step: Clipping) -> Tensor:
    """The limit of a weight [out, ...], broadcastable to it: one a channel, or one."""
    rows = weight.detach().flatten(1) if step.per == "channel" else weight.detach().reshape(1, -1)
    sizes = rows.abs().double()
    if step.threshold is not None:
        found = torch.full((len(rows),), step.threshold, dtype=torch.float64)
    elif step.method == "percentile":
        found = sizes.quantile(step.percentile / 100, dim=1) if sizes.shape[1] < 2**24 else _kth(sizes, step)
    else:
        found = least_error(rows.double(), step.bits)
    return found.to(weight.dtype).reshape(-1, *(1 for _ in weight.shape[1:]))


def rounded(rows: Tensor, limit: Tensor, bits: int) -> Tensor:
    """Rows [R, N] cut to their limits [R] and rounded to symmetric integers of `bits`."""
    largest = 2 ** (bits - 1) - 1
    scale = (limit / largest).clamp_min(torch.finfo(rows.dtype).tiny)[:, None]
    found: Tensor = (rows / scale).round().clamp(-largest, largest) * scale
    return found


def least_error(rows: Tensor, bits: int) -> Tensor:
    """Each row's limit [R] of the least squared rounding error; the largest of equals."""
    largest = rows.abs().amax(1)
    best, least = largest.clone(), torch.full_like(largest, torch.inf)
    for fraction in _FRACTIONS:
        limit = largest * fraction
        error = (rounded(rows, limit, bits) - rows).square().sum(1)
        better = error < least
        best, least = torch.where(better, limit, best), torch.where(better, error, least)
    return best


def _kth(sizes: Tensor, step: Clipping) -> Tensor:
    """The percentile of rows too long for `torch.quantile`: an order statistic."""
    rank = max(round(step.percentile / 100 * sizes.shape[1]), 1)
    found: Tensor = sizes.kthvalue(rank, dim=1).values
    return found
