"""The promise: a variant is not worse than its parent by more than `max_drop`, shown on paired rows.

A one-sided non-inferiority test: the promise holds when the upper confidence bound of the drop is at
most `max_drop`. Finding no significant difference is not enough; too few rows cannot keep a promise.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.measure import Metric
from orchestrator.config.search import Promise
from orchestrator.measure.intervals import normal_quantile, resamples, upper_bound
from orchestrator.measure.metrics import checked, larger_is_better, statistic

RESAMPLES = 2000


@dataclass(frozen=True)
class Verdict:
    """Outcome of one look at the contract part. A drop is positive when the variant is worse."""

    holds: bool
    drop: float
    """Observed, in the metric's unit."""
    bound: float
    """One-sided upper confidence bound of the drop."""
    rows: int
    max_drop: float
    confidence: float
    test: str
    reason: str

    def plain(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def non_inferior(
    metric: Metric,
    variant_outputs: npt.ArrayLike,
    parent_outputs: npt.ArrayLike,
    targets: npt.ArrayLike,
    promise: Promise,
    *,
    seed: int = 0,
    allowed: Collection[str] = (),
) -> Verdict:
    """Test the promise on paired rows.

    Accuracy: the score interval of the difference of paired proportions (Tango 1998, Statistics in
    Medicine 17:891-908), which stays sound when few or no rows differ. Other metrics: the percentile
    bootstrap of the paired difference; for metrics of counts it is widened to what no difference at
    all on so few rows could show.

    Args:
        metric: What was promised.
        variant_outputs: [N, K] of the variant, in its execution.
        parent_outputs: [N, K] of the parent on the same rows.
        targets: Labels [N] or values [N, T].
        promise: Allowed drop and confidence.
        seed: Of the bootstrap.
        allowed: Import paths that the metric may come from.
    """
    if metric.name == "accuracy":
        drop, bound, rows = _accuracy_drop(variant_outputs, parent_outputs, targets, promise.confidence)
        test = "paired score test (Tango 1998)"
    else:
        drop, bound, rows = _bootstrap_drop(
            metric, variant_outputs, parent_outputs, targets, promise.confidence, seed, allowed
        )
        test = "paired bootstrap"
    holds = bool(bound <= promise.max_drop)
    reason = (
        f"{metric.name} drops by {drop:.4f} on {rows} rows and at {promise.confidence:.0%} confidence by at "
        f"most {bound:.4f}, which is {'within' if holds else 'more than'} the allowed {promise.max_drop:g}"
    )
    return Verdict(holds, drop, bound, rows, promise.max_drop, promise.confidence, test, reason)


def tango_upper_drop(lost: int, won: int, rows: int, confidence: float) -> float:
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


def _tango_statistic(lost: int, won: int, rows: int, drop: float) -> float:
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


def _accuracy_drop(
    variant_outputs: npt.ArrayLike, parent_outputs: npt.ArrayLike, targets: npt.ArrayLike, confidence: float
) -> tuple[float, float, int]:
    variant, truth = checked(variant_outputs, targets, True)
    parent, _ = checked(parent_outputs, targets, True)
    variant_right, parent_right = variant.argmax(axis=1) == truth, parent.argmax(axis=1) == truth
    lost = int((parent_right & ~variant_right).sum())
    won = int((variant_right & ~parent_right).sum())
    rows = len(truth)
    return (lost - won) / rows, tango_upper_drop(lost, won, rows, confidence), rows


def _bootstrap_drop(
    metric: Metric,
    variant_outputs: npt.ArrayLike,
    parent_outputs: npt.ArrayLike,
    targets: npt.ArrayLike,
    confidence: float,
    seed: int,
    allowed: Collection[str],
) -> tuple[float, float, int]:
    variant = statistic(metric, variant_outputs, targets, allowed=allowed)
    parent = statistic(metric, parent_outputs, targets, allowed=allowed)
    sign = 1.0 if larger_is_better(metric) else -1.0
    truth = np.asarray(targets)
    rows = len(truth)

    def drop(weights: npt.NDArray[np.float64]) -> float:
        return sign * (parent(weights) - variant(weights))

    bound = upper_bound([drop(weights) for weights in resamples(rows, seed, RESAMPLES)], confidence)
    if metric.name in ("macro_f1", "recall_at_precision"):
        # Resampling rows that do not differ shows no spread, however few they are. Each class weighs the
        # same here, so the rarest limits what can be seen; Tango's bound at no differing row is the floor.
        counts = np.bincount(truth)
        seen = int(counts[1]) if metric.name != "macro_f1" and len(counts) == 2 else _rarest(counts)
        bound = max(bound, tango_upper_drop(0, 0, max(seen, 1), confidence))
    return drop(np.ones(rows)), bound, rows


def _rarest(counts: npt.NDArray[np.int64]) -> int:
    """Rows that a macro mean is as sure as: as if every occurring class had the rarest one's rows."""
    occurring = counts[counts > 0]
    return int(occurring.min() * len(occurring))
