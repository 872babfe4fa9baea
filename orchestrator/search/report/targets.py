"""The search's part of the page as plain data: trials, front, knee, hypervolume and axes of each target."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.search.importance import constant, is_number, on_log_scale
from orchestrator.search.pareto import METRIC_BELOW, Point, front, hypervolumes, knee, outline
from orchestrator.search.report.schema import Details, Searched, TrialPoint
from orchestrator.search.report.text import SHARES, metric_name

Plain = dict[str, Any]

_FIGURES = ("metric", "drop", "drop_bound", "latency_ms", "p95_ms", "speedup", "bytes", "seconds")
_SPANS = ("metric_ci", "latency_ci", "speedup_ci")


def search_data(details: Details, name: str) -> Plain | None:
    """What the page's script draws; None when no target has a trial.

    Args:
        details: the run's details.
        name: the metric's name.
    """
    steps: dict[str, int] = {}
    targets = {
        target: _target(searched, details, steps)
        for target, searched in details.get("targets", {}).items()
        if searched.get("trials")
    }
    if not targets:
        return None
    return {
        "metric": {
            "label": metric_name(name),
            "percent": name in SHARES,
            "larger": details.get("larger_is_better", True),
        },
        "targets": targets,
        # Thousands of trials share few distinct steps.
        "steps": [json.loads(step) for step in steps],
    }


def finished(searched: Searched) -> list[int]:
    """Places of the trials that have all their figures."""
    return [place for place, trial in enumerate(searched["trials"]) if is_finished(trial)]


def is_finished(trial: TrialPoint) -> bool:
    """Ended with a metric and a latency."""
    return (
        trial.get("status") == "ok"
        and is_number(trial.get("metric"))
        and is_number(trial.get("latency_ms"))
        and trial["latency_ms"] > 0
    )


def gain(trial: TrialPoint, larger: bool) -> float:
    """The metric, negated where smaller is better."""
    return trial["metric"] if larger else -trial["metric"]


def number(trial: TrialPoint, place: int) -> int:
    """A trial's number, or its place, from 1 as logs count; those of arms are below 0."""
    found = trial.get("number", place)
    return found + 1 if found >= 0 else found


def is_chosen(trial: TrialPoint, searched: Searched) -> bool:
    """Whether it is the chosen variant."""
    if "chosen_number" in searched:
        return trial.get("number") == searched["chosen_number"]
    return trial["name"] == searched.get("chosen")


def _target(searched: Searched, details: Details, steps: dict[str, int]) -> Plain:
    trials, parent = searched["trials"], searched.get("parent")
    larger, max_drop = details.get("larger_is_better", True), details.get("max_drop")
    places = finished(searched)
    points = [
        Point(gain(trials[place], larger), trials[place]["latency_ms"], trials[place].get("bytes", 0))
        for place in places
    ]
    level = None
    if parent and max_drop is not None:
        level = parent["metric"] + (-max_drop if larger else max_drop)
    kneed = _knee(points, gain(parent, larger) if parent else None)
    return {
        "trials": [_trial(trial, place, steps) for place, trial in enumerate(trials)],
        "parent": _trial(parent, -1, steps) if parent else None,
        "front": [places[index] for index in front(points)],
        "outline": [places[index] for index in outline(points)],
        "knee": None if kneed is None else places[kneed],
        "chosen": next((place for place in places if is_chosen(trials[place], searched)), None),
        "level": level,
        "volume": _volume(trials, places, points, parent, larger),
        "axes": _axes([trial.get("config", {}) for trial in trials if not trial.get("arm")]),
    }


def _knee(points: Sequence[Point], parent_gain: float | None) -> int | None:
    """The knee among points that the hypervolume counts; a collapsed variant would move the chord's end."""
    if parent_gain is not None:
        near = [index for index, point in enumerate(points) if point.gain >= parent_gain - METRIC_BELOW]
        found = knee([points[index] for index in near])
        if found is not None:
            return near[found]
    return knee(points)


def _volume(
    trials: Sequence[TrialPoint],
    places: Sequence[int],
    points: Sequence[Point],
    parent: TrialPoint | None,
    larger: bool,
) -> Plain | None:
    """(trial or second, hypervolume) after each finished trial; without a parent there is no reference.

    Honest arms are not of the search's doing.
    """
    own = [index for index, place in enumerate(places) if not trials[place].get("arm")]
    places, points = [places[index] for index in own], [points[index] for index in own]
    if not parent or not places:
        return None

    def curve(order: Sequence[int], at: Sequence[float]) -> list[list[float]]:
        values = hypervolumes(
            [points[index] for index in order],
            parent_gain=gain(parent, larger),
            parent_latency_ms=parent["latency_ms"],
        )
        return [[at[index], value] for index, value in zip(order, values, strict=True)]

    numbers = [float(number(trials[place], place)) for place in places]
    seconds = [float(trials[place].get("seconds", 0.0)) for place in places]
    by_number = sorted(range(len(places)), key=lambda index: numbers[index])
    by_time = sorted(range(len(places)), key=lambda index: (seconds[index], numbers[index]))
    timed = all(value > 0 for value in seconds)
    return {"trials": curve(by_number, numbers), "time": curve(by_time, seconds) if timed else None}


def _axes(configs: Sequence[Mapping[str, Any]]) -> list[Plain]:
    """One axis a parameter that varies, or that only some trials have, in the order they first occur."""
    fixed = constant(configs)
    values: dict[str, list[Any]] = {}
    for config in configs:
        for name, value in config.items():
            values.setdefault(name, []).append(value)
    return [
        _axis(name, occurring)
        for name, occurring in values.items()
        if name not in fixed or len(occurring) < len(configs)
    ]


def _axis(name: str, values: Sequence[Any]) -> Plain:
    if all(is_number(value) for value in values):
        return {"name": name, "low": min(values), "high": max(values), "log": on_log_scale(values)}
    return {"name": name, "values": sorted({_value(value) for value in values}, key=str)}


def _trial(trial: TrialPoint, place: int, steps: dict[str, int]) -> Plain:
    found: Plain = {
        "number": number(trial, place),
        "name": str(trial.get("name", "")),
        "execution": trial.get("execution", ""),
        "digest": trial.get("digest", ""),
        "status": "ok" if is_finished(trial) or place < 0 else _status(trial),
        "reason": trial.get("reason", ""),
        "arm": trial.get("arm", ""),
        "feasible": not trial.get("violations"),
        "violations": list(trial.get("violations", ())),
        "config": {name: _value(value) for name, value in trial.get("config", {}).items()},
        "plan": [_step(step, steps) for step in trial["plan"]] if "plan" in trial else None,
    }
    for key in _FIGURES:
        if key in trial:
            found[key] = _finite(trial[key])  # type: ignore[literal-required]
    for key in _SPANS:
        span = trial.get(key)
        if span and all(is_number(end) for end in span):  # type: ignore[attr-defined]
            found[key] = list(span)  # type: ignore[call-overload]
    for key in ("audit", "verdict"):
        if trial.get(key):
            found[key] = _finite(trial[key])  # type: ignore[literal-required]
    return found


def _status(trial: TrialPoint) -> str:
    """A trial told as finished without finite figures failed."""
    status = trial.get("status", "failed")
    return "failed" if status == "ok" else status


def _step(step: Mapping[str, Any], steps: dict[str, int]) -> int:
    return steps.setdefault(json.dumps(_finite(step)), len(steps))


def _value(value: Any) -> Any:
    """A number as it is, anything else as its word, so that both languages write it alike."""
    return value if is_number(value) else _word(value)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _finite(value: Any) -> Any:
    """Plain JSON: a number that is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
