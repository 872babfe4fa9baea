"""What the report needs beyond the run summary. Every key may be missing; its section is then left out."""

from __future__ import annotations

from typing import Any, TypedDict


class Epoch(TypedDict):
    """One epoch of a training; `metric` is on the validation part."""

    epoch: int
    loss: float
    metric: float


class TrialPoint(TypedDict, total=False):
    """One trial of the search, or its parent; quality is on the validation part."""

    name: str
    config: dict[str, Any]
    execution: str
    metric: float
    latency_ms: float
    latency_ci: tuple[float, float]
    speedup: float
    bytes: int
    status: str
    """`ok` or `failed`."""
    reason: str


class Details(TypedDict, total=False):
    """Companion of `summary.json`."""

    curves: dict[str, list[Epoch]]
    """By model."""
    trials: list[TrialPoint]
    parent: TrialPoint
    """The searched model in eager fp32."""
    max_drop: float
    """Of the promise."""
    larger_is_better: bool
    """Direction of the metric; true when missing."""
    exits: dict[str, list[float]]
    """By cascade: share of the test rows that each stage answered."""
    stages: dict[str, list[str]]
    """By cascade: names of its stages."""
    weights: dict[str, dict[str, float]]
    """By weighted mix: each member's weight."""
    config: str
    """The run file as YAML, defaults and overrides included."""
    notes: list[str]
    """Sentences that the reader should not miss."""
