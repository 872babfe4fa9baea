"""Limits of weights: where to cut them, given, by percentile, or by least rounding error."""

from __future__ import annotations

import torch
from torch import Tensor

from orchestrator.config.clipping import Clipping

_FRACTIONS = torch.linspace(1.0, 0.2, 81)
"""Of the largest weight: the limits that method mse tries."""


def limits(weight: Tensor, settings: Clipping) -> Tensor:
    """The limit of a weight [out, ...], broadcastable to it: one a channel, or one.

    Method mse: Banner et al. 2019 (https://arxiv.org/abs/1810.05723) look for the limit whose rounding
    error is least; here by trying, since weights are at hand.
    """
    rows = weight.detach().flatten(1) if settings.per == "channel" else weight.detach().reshape(1, -1)
    sizes = rows.abs().double()
    if settings.threshold is not None:
        found = torch.full((len(rows),), settings.threshold, dtype=torch.float64, device=weight.device)
    elif settings.method == "percentile":
        small = sizes.shape[1] < 2**24  # more than torch.quantile takes
        share = settings.percentile / 100
        found = sizes.quantile(share, dim=1) if small else _order_statistic(sizes, share)
    else:
        found = least_error(rows.double(), settings.bits)
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


def _order_statistic(sizes: Tensor, share: float) -> Tensor:
    found: Tensor = sizes.kthvalue(max(round(share * sizes.shape[1]), 1), dim=1).values
    return found
