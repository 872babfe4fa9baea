"""The Pareto front, its knee and its hypervolume. Pure functions of numbers."""

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
_STRAIGHT = 1e-6
"""A front that bulges less than this, in units of its own axes, is a line."""


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
    # In this order a point that dominates another comes before it, so the kept ones are all to compare with.
    order = sorted(
        range(len(points)),
        key=lambda index: (points[index].latency_ms, -points[index].gain, points[index].bytes, index),
    )
    kept: list[int] = []
    for index in order:
        if not any(dominates(points[other], points[index]) for other in kept):
            kept.append(index)
    return sorted(kept, key=lambda index: (points[index].latency_ms, -points[index].gain, index))


def outline(points: Sequence[Point]) -> list[int]:
    """Indices of the front in gain and latency alone, fastest first: the staircase of a plot.

    Of points that are equal in both, the first stands for all.
    """
    flat = [point._replace(bytes=0.0) for point in points]
    kept = front(flat)
    return [index for place, index in enumerate(kept) if place == 0 or flat[index] != flat[kept[place - 1]]]


def knee(points: Sequence[Point]) -> int | None:
    """Index of the point where leaving the front in either direction costs most; None where it has none.

    The knee (Branke et al. 2004, "Finding knees in multi-objective optimization") is taken as the point of
    the outline that bulges farthest from the chord between its fastest and its best point (Das 1999), with
    gain and the natural log of latency each scaled to 0..1 over the outline. A front of fewer than three
    points, a straight one and one that only bends inwards have no knee.
    """
    line = outline(points)
    if len(line) < 3:
        return None
    fastest, best = points[line[0]], points[line[-1]]
    gains = best.gain - fastest.gain
    logs = math.log(best.latency_ms / fastest.latency_ms)

    def bulge(index: int) -> float:
        """Up to a factor of the square root of two, the distance above the chord from (0, 0) to (1, 1)."""
        point = points[index]
        return (point.gain - fastest.gain) / gains - math.log(point.latency_ms / fastest.latency_ms) / logs

    found = max(line, key=bulge)
    return found if bulge(found) > _STRAIGHT else None


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


def hypervolumes(points: Sequence[Point], *, parent_gain: float, parent_latency_ms: float) -> list[float]:
    """The hypervolume after each point, in the order given."""
    found: list[float] = []
    kept: list[Point] = []
    for point in points:
        if not found or not any(dominates(other, point) or other == point for other in kept):
            kept = [other for other in kept if not dominates(point, other)] + [point]
            found.append(hypervolume(kept, parent_gain=parent_gain, parent_latency_ms=parent_latency_ms))
        else:
            found.append(found[-1])
    return found


def _unit(point: Point, parent_gain: float, parent_latency_ms: float) -> tuple[float, float]:
    gain = (point.gain - parent_gain + METRIC_BELOW) / METRIC_SPAN
    speed = math.log(parent_latency_ms / point.latency_ms) / math.log(LATENCY_SPAN)
    return min(max(gain, 0.0), 1.0), min(max(speed, 0.0), 1.0)
