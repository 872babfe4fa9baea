"""Confidence intervals: Wilson's for a proportion, Tango's for the difference of two on the same rows, the
percentile bootstrap for everything else."""

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


def tango_upper_drop(lost: float, won: float, rows: float, confidence: float) -> float:
    """Upper bound of p(parent right, variant wrong) - p(variant right, parent wrong).

    It is the largest drop that the one-sided score test at this confidence does not reject. The
    statistic is monotone in the drop, so bisection finds it.

    Args:
        lost: Rows that only the parent has right.
        won: Rows that only the variant has right.
        rows: All rows.
        confidence: One-sided.
    """
    z = normal_quantile(confidence)
    low, high = (lost - won) / rows, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _tango_statistic(lost, won, rows, middle) > -z:
            low = middle
        else:
            high = middle
    return high


def _tango_statistic(lost: float, won: float, rows: float, drop: float) -> float:
    """Score statistic of H: the drop is `drop`; 0 at the observed drop, falling as `drop` rises.

    Tango's equations (2) and (3) with b = lost, c = won, lambda = drop: the probability of "only the
    variant is right" is its maximum likelihood value under H.
    """
    a = 2 * rows
    b = -lost - won + (2 * rows - lost + won) * drop
    c = -won * drop * (1 - drop)
    q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = rows * (2 * q + drop * (1 - drop))
    gap = lost - won - rows * drop
    if variance <= 0:
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


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
