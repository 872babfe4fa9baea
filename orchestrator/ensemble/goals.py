"""From a goal to one candidate: what keeps all bounds, or what comes nearest and by how much it does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from orchestrator.config.goal import Goal
from orchestrator.ensemble.crossfit import Judged
from orchestrator.ensemble.planner import Point, Survey

Gain = Callable[[Judged], float]
Robustness = Mapping[Judged, float]
"""Gain on shifted rows."""


@dataclass(frozen=True, eq=False)
class Choice:
    """What a goal leads to."""

    point: Point
    """The one to take, or what comes nearest to the goal."""
    beyond: dict[str, float]
    """How far it is beyond each bound that it does not keep: nothing when it is the one to take. A drop and a
    robustness are in the metric's unit, all else is a share of the bound."""


@dataclass(frozen=True)
class Honest:
    """What a choice among the candidates, made on four fifths of the rows, is worth on the last fifth, over
    all five. The candidates' members were picked on all rows."""

    gain: float
    drop: float
    """Against the reference."""


def choose(survey: Survey, goal: Goal, *, robustness: Robustness | None = None) -> Choice:
    """The fastest point within all bounds when one of them is `max_drop`, else the one of the best metric.

    Args:
        survey: Candidates and the reference.
        goal: The bounds.
        robustness: Where it is known; a bound on it leaves the other candidates out. Not given, it does not
            count.
    """
    points = survey.points
    if robustness is not None and goal.min_robustness is not None:
        points = tuple(point for point in points if point.judged in robustness)
    return _choose(survey, points, goal, lambda judged: judged.gain, robustness)


def honest(survey: Survey, goal: Goal) -> Honest | None:
    """The choice made anew without each fold, judged on that fold; None when the goal is not reached there.
    Folds without whose rows, or on whose rows, the metric is undefined (too few positives) are passed over.

    This is what the procedure is worth, without the winner's luck (nested cross-validation; Varma and Simon
    2006, "Bias in error estimation when using cross-validation for model selection"), but for that of the
    candidates' members: who is in a mix, how models rank and which stages a cascade has were picked once, on
    all rows. A bound on the robustness is left out.
    """
    gains, drops, reference = [], [], survey.reference
    for fold, (with_fold, without) in enumerate(zip(reference.inside, reference.outside, strict=True)):
        if math.isnan(with_fold) or math.isnan(without):
            continue
        found = _choose(survey, survey.points, goal, partial(_without, fold))
        if found.beyond:
            return None
        gains.append(found.point.judged.inside[fold])
        drops.append(with_fold - gains[-1])
    return Honest(sum(gains) / len(gains), sum(drops) / len(drops)) if gains else None


def beyond(
    point: Point, goal: Goal, drop: float, *, robustness: float | None = None, larger: bool = True
) -> dict[str, float]:
    """How far a point is beyond each bound that it does not keep.

    Args:
        point: Its costs.
        goal: The bounds.
        drop: Against the reference.
        robustness: Gain on shifted rows, where it is known.
        larger: Direction of the metric.
    """
    known = (
        ("latency_ms", point.latency_ms, goal.latency_ms),
        ("p99_ms", point.p99_ms, goal.p99_ms),
        ("max_bytes", point.bytes, goal.max_bytes),
        ("cost_per_million", point.cost_per_million, goal.cost_per_million),
        ("max_models_per_answer", point.models_per_answer, goal.max_models_per_answer),
    )
    found = {name: value / bound - 1 for name, value, bound in known if bound is not None and value > bound}
    # A hair of slack: equal figures that were summed in another order are equal.
    if goal.max_drop is not None and drop > goal.max_drop + 1e-12:
        found["max_drop"] = drop - goal.max_drop
    if goal.single_model and not point.single:
        found["single_model"] = 1.0
    if goal.min_robustness is not None and robustness is not None:
        least = goal.min_robustness if larger else -goal.min_robustness
        if robustness < least:
            found["min_robustness"] = least - robustness
    return found


def _without(fold: int, judged: Judged) -> float:
    return judged.outside[fold]


def _choose(
    survey: Survey,
    points: Sequence[Point],
    goal: Goal,
    gain: Gain,
    robustness: Robustness | None = None,
) -> Choice:
    against = gain(survey.reference)

    def over(point: Point) -> dict[str, float]:
        known = robustness.get(point.judged) if robustness is not None else None
        drop = against - gain(point.judged)
        return beyond(point, goal, drop, robustness=known, larger=survey.larger)

    def rank(point: Point) -> tuple[float, ...]:
        per_row = point.latency_ms / point.batch
        if goal.max_drop is not None:
            return per_row, point.bytes, -gain(point.judged)
        return -gain(point.judged), per_row, point.bytes

    missed = {point: over(point) for point in points}
    kept = [point for point, found in missed.items() if not found]
    if kept:
        return Choice(min(kept, key=rank), {})
    nearest = min(points, key=lambda point: (sum(missed[point].values()), rank(point)))
    return Choice(nearest, missed[nearest])
