"""Confidence intervals: Wilson's for a proportion, the percentile bootstrap for everything else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 1000
CONFIDENCE = 0.95


def normal_quantile(probability: float) -> float:
    """z with P(Z <= z) = probability for a standard normal Z."""
    return NormalDist().inv_cdf(probability)


def wilson(successes: float, rows: float, confidence: float = CONFIDENCE) -> Interval:
    """Two-sided score interval of a proportion (Wilson 1927); sound at 0 and 1, where Wald's is not."""
    z = normal_quantile((1 + confidence) / 2)
    share = successes / rows
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return max(0.0, centre - half), min(1.0, centre + half)


def resamples(rows: int, seed: int, count: int = RESAMPLES) -> Iterator[Floats]:
    """`count` bootstrap samples of `rows` rows, each as how often every row was drawn [rows]."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        drawn = np.bincount(rng.integers(rows, size=rows), minlength=rows)
        yield drawn.astype(np.float64)


def percentile_interval(values: npt.ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Two-sided percentile interval of resampled values; NaN (undefined on a resample) is left out."""
    known = _finite(values)
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def upper_bound(values: npt.ArrayLike, confidence: float) -> float:
    """One-sided percentile bound: the `confidence` quantile of resampled values, NaN left out."""
    known = _finite(values)
    return float(np.quantile(known, confidence)) if len(known) else math.inf


def median_interval(
    values: npt.ArrayLike, *, seed: int = 0, confidence: float = CONFIDENCE, count: int = RESAMPLES
) -> Interval:
    """Seeded bootstrap interval of the median of `values`."""
    known = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    drawn = known[rng.integers(len(known), size=(count, len(known)))]
    return percentile_interval(np.median(drawn, axis=1), confidence)


def _finite(values: npt.ArrayLike) -> npt.NDArray[Any]:
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]
