"""The Pareto front and its hypervolume. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

METRIC_BELOW = 0.10
"""The reference point lies this much below the parent's metric (design, Search)."""
METRIC_SPAN = 0.20
"""Width of the metric axis: the parent lies at its middle."""
LATENCY_SPAN = 100.0
"""The latency axis ends at this factor below the parent's latency."""


class Point(NamedTuple):
    """`gain` up; `latency_ms` and `bytes` down. `gain` is the metric, negated where smaller is better."""

    gain: float
    latency_ms: float
    bytes: float = 0.0


def dominates(one: Point, other: Point) -> bool:
    """No worse in everything and better in something."""
    no_worse = one.gain >= other.gain and one.latency_ms <= other.latency_ms and one.bytes <= other.bytes
    return no_worse and one != other


def front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that none dominates, fastest first; equal points all stay.

    Raises:
        ValueError: a coordinate is not finite.
    """
    if not all(math.isfinite(value) for point in points for value in point):
        raise ValueError("a point of the front is not finite")
    kept = [
        index for index, point in enumerate(points) if not any(dominates(other, point) for other in points)
    ]
    return sorted(kept, key=lambda index: (points[index].latency_ms, -points[index].gain, index))


def hypervolume(points: Sequence[Point], *, parent_gain: float, parent_latency_ms: float) -> float:
    """Area of metric and latency that the points dominate, 0..1.

    The metric axis runs from the parent's - 0.10 (0) to its + 0.10 (1); the latency axis is the natural
    log, from the parent's eager fp32 latency (0) to a hundredth of it (1). A point outside is moved to
    the edge, so one that is worse than the reference point adds nothing.
    """
    unit = sorted((_unit(point, parent_gain, parent_latency_ms) for point in points), reverse=True)
    area, height = 0.0, 0.0
    for gain, speed in unit:
        if speed > height:
            area += gain * (speed - height)
            height = speed
    return area


def _unit(point: Point, parent_gain: float, parent_latency_ms: float) -> tuple[float, float]:
    gain = (point.gain - parent_gain + METRIC_BELOW) / METRIC_SPAN
    speed = math.log(parent_latency_ms / point.latency_ms) / math.log(LATENCY_SPAN)
    return min(max(gain, 0.0), 1.0), min(max(speed, 0.0), 1.0)
