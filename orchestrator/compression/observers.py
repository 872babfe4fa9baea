"""Observers: which range of an activation the 256 integers stand for."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from orchestrator.config.steps import StaticInt8
from orchestrator.runtime.int8 import Observer
from orchestrator.runtime.torchao_names import HistogramObserver, MinMaxObserver

_FRACTIONS = torch.linspace(1.0, 0.1, 91).tolist()
"""Of the whole range: what the least error is looked for among."""


def observer_of(step: StaticInt8) -> Observer:
    """What makes the observers that a step asks for.

    `histogram` is torchao's search for the least squared error in a histogram, from outside in; `minmax`
    keeps every value seen; `percentile` gives up the tails (Wu et al. 2020, https://arxiv.org/abs/2004.09602);
    `mse` tries shrunken ranges and takes the one of least squared error (as Banner et al. 2019,
    https://arxiv.org/abs/1810.05723, do by formula).
    """
    kinds: dict[str, Observer] = {
        "histogram": HistogramObserver.with_args,
        "minmax": MinMaxObserver.with_args,
        "percentile": partial(_Percentile.with_args, share=step.percentile / 100),
        "mse": _LeastError.with_args,
    }
    return kinds[step.observer]


class _Percentile(HistogramObserver):  # type: ignore[misc]
    """The range between the two percentiles."""

    def __init__(self, share: float, **options: Any) -> None:
        super().__init__(**options)
        self.share = share

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, one each."""
        low, high = percentile_range(self.histogram, float(self.min_val), float(self.max_val), self.share)
        found: tuple[Tensor, Tensor] = self._calculate_qparams(torch.tensor(low), torch.tensor(high))
        return found


class _LeastError(HistogramObserver):  # type: ignore[misc]
    """The shrunken range whose rounding and cutting costs least."""

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, one each."""
        levels = self.quant_max - self.quant_min
        low, high = least_error_range(self.histogram, float(self.min_val), float(self.max_val), levels)
        found: tuple[Tensor, Tensor] = self._calculate_qparams(torch.tensor(low), torch.tensor(high))
        return found


def percentile_range(histogram: Tensor, low: float, high: float, share: float) -> tuple[float, float]:
    """The edges between which values stay: below the upper and above the lower one lies `share` of all.

    Args:
        histogram: counts [bins] from `low` to `high`.
        low: of the smallest value.
        high: of the largest.
        share: 0 to 1.
    """
    total = float(histogram.sum())
    if total == 0 or not low < high:
        return low, high
    below = histogram.double().cumsum(0) / total
    width = (high - low) / len(histogram)
    # A hair of slack: sums of float counts end a little below 1.
    last = int((below < share - 1e-9).sum())
    first = int((below <= 1 - share).sum())
    return low + first * width, low + (min(last, len(histogram) - 1) + 1) * width


def least_error_range(histogram: Tensor, low: float, high: float, levels: int) -> tuple[float, float]:
    """The range, a shrunken [low, high] with zero inside, of the least squared error; the widest of equals.

    Args:
        histogram: counts [bins] from `low` to `high`.
        low: of the smallest value.
        high: of the largest.
        levels: steps between the smallest and the largest integer.
    """
    if not low < high:
        return low, high
    width = (high - low) / len(histogram)
    values = low + (torch.arange(len(histogram), dtype=torch.float64) + 0.5) * width
    bottom, top = min(low, 0.0), max(high, 0.0)
    best, least = (bottom, top), float("inf")
    for fraction in _FRACTIONS:
        start, scale = fraction * bottom, fraction * (top - bottom) / levels
        rounded = ((values - start) / scale).round().clamp(0, levels) * scale + start
        error = float(((rounded - values).square() * histogram).sum())
        if error < least:
            best, least = (start, fraction * top), error
    return best
