"""Front and hypervolume against brute force and hand-made cases."""

from __future__ import annotations

import math
import random

import pytest

from orchestrator.search.pareto import (
    LATENCY_SPAN,
    Point,
    dominates,
    front,
    hypervolume,
    hypervolumes,
    knee,
    outline,
)


def brute_force(points: list[Point]) -> set[int]:
    kept = set()
    for index, (gain, latency, size) in enumerate(points):
        beaten = any(
            other[0] >= gain
            and other[1] <= latency
            and other[2] <= size
            and (other[0] > gain or other[1] < latency or other[2] < size)
            for other in points
        )
        if not beaten:
            kept.add(index)
    return kept


@pytest.mark.parametrize("seed", range(20))
def test_front_equals_brute_force(seed: int) -> None:
    draw = random.Random(seed)
    # A coarse grid makes ties and equal points common.
    points = [Point(draw.randint(0, 5), draw.randint(1, 5), draw.randint(1, 3)) for _ in range(40)]
    found = front(points)
    assert set(found) == brute_force(points)
    assert len(found) == len(set(found))
    latencies = [points[index].latency_ms for index in found]
    assert latencies == sorted(latencies)


def test_equal_points_do_not_dominate_each_other() -> None:
    point = Point(0.9, 1.0, 10)
    assert not dominates(point, point)
    assert front([point, point]) == [0, 1]


def test_empty_front() -> None:
    assert front([]) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        front([Point(0.9, 1.0), Point(bad, 1.0)])


def volume(*points: Point) -> float:
    return hypervolume(points, parent_gain=0.9, parent_latency_ms=10.0)


def test_hypervolume_by_hand() -> None:
    assert volume() == 0.0
    # The parent's metric is half of the metric axis; a tenth of the latency half of the log axis.
    assert volume(Point(0.9, 1.0)) == pytest.approx(0.25)
    # Two steps of a staircase: 0.5 x 0.5 + 0.25 x (1 - 0.5).
    assert volume(Point(0.9, 1.0), Point(0.85, 0.1)) == pytest.approx(0.375)
    assert volume(Point(0.9, 1.0), Point(0.85, 0.1), Point(0.85, 2.0)) == pytest.approx(0.375)


def test_a_point_worse_than_the_reference_adds_nothing() -> None:
    assert volume(Point(0.79, 0.1)) == 0.0
    assert volume(Point(0.95, 11.0)) == 0.0
    assert volume(Point(0.9, 1.0), Point(0.79, 0.1)) == pytest.approx(0.25)


@pytest.mark.parametrize("seed", range(5))
def test_hypervolume_equals_counting_cells(seed: int) -> None:
    draw = random.Random(seed)
    points = [Point(draw.uniform(0.78, 1.02), 10 ** draw.uniform(-1.2, 1.2)) for _ in range(12)]
    cells = 200
    inside = 0
    for row in range(cells):
        gain = 0.8 + 0.2 * (row + 0.5) / cells
        for column in range(cells):
            latency = 10.0 * LATENCY_SPAN ** -((column + 0.5) / cells)
            inside += any(point.gain >= gain and point.latency_ms <= latency for point in points)
    assert volume(*points) == pytest.approx(inside / cells**2, abs=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_hypervolume_after_each_point(seed: int) -> None:
    draw = random.Random(seed)
    points = [
        Point(draw.uniform(0.78, 1.02), 10 ** draw.uniform(-1.2, 1.2), draw.random()) for _ in range(30)
    ]
    points.append(points[3])
    found = hypervolumes(points, parent_gain=0.9, parent_latency_ms=10.0)
    assert found == pytest.approx([volume(*points[: count + 1]) for count in range(len(points))])
    assert found == sorted(found)


def test_the_outline_leaves_bytes_aside() -> None:
    points = [Point(0.9, 2.0, 50), Point(0.8, 1.0, 90), Point(0.85, 2.0, 10), Point(0.9, 2.0, 60)]
    assert front(points) == [1, 0, 2]
    assert outline(points) == [1, 0]


def test_the_knee_bulges_farthest_from_the_chord() -> None:
    # On a log axis 1, 2, 4, 8 ms are evenly spaced; the chord gains 0.1 a step.
    bent = [Point(0.6, 1.0), Point(0.85, 2.0), Point(0.88, 4.0), Point(0.9, 8.0)]
    assert knee(bent) == 1
    dominated = [Point(0.5, 1.5), *bent, Point(0.84, 9.0)]
    assert knee(dominated) == 2
    # Neither the unit of an axis nor where it starts changes the knee.
    assert knee([Point(100 * gain + 7, 1000 * latency) for gain, latency, _ in bent]) == 1


@pytest.mark.parametrize(
    "points",
    [
        [],
        [Point(0.9, 1.0)],
        [Point(0.8, 1.0), Point(0.9, 2.0)],
        [Point(0.6, 1.0), Point(0.7, 2.0), Point(0.8, 4.0)],
        [Point(0.6, 1.0), Point(0.61, 2.0), Point(0.9, 4.0)],
    ],
    ids=["none", "one", "two", "straight", "inwards"],
)
def test_a_front_without_a_knee(points: list[Point]) -> None:
    assert knee(points) is None
