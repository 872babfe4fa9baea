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

    number: int
    name: str
    config: dict[str, Any]
    """What the trial chose: plain values by any names."""
    execution: str
    digest: str
    metric: float
    metric_ci: tuple[float, float]
    drop: float
    drop_bound: float
    latency_ms: float
    latency_ci: tuple[float, float]
    p95_ms: float
    speedup: float
    speedup_ci: tuple[float, float]
    bytes: int
    status: str
    """`ok`, or one word for what it ended as: `failed`, `evaluated` (no latency), `stopped`."""
    reason: str
    violations: list[str]
    """Of a finished trial: a sentence for each constraint that it does not keep; none when feasible."""
    arm: str
    """Label of an honest arm; empty or missing for what the sampler suggested."""
    seconds: float
    """When it ended, from the start of the search."""
    plan: list[dict[str, Any]]
    """Its steps; empty where there was none, missing where it is not known."""
    audit: dict[str, Any]
    """Facts about the artifact (`compression.audit`)."""
    verdict: dict[str, Any]
    """The contract part's answer, of a variant that it was asked about."""


class Searched(TypedDict, total=False):
    """The trials of one target, in order."""

    trials: list[TrialPoint]
    parent: TrialPoint
    """The searched model in eager fp32."""
    setting: str
    """Machine, batch and threads of its latencies, in words."""
    chosen: str
    """Name of the chosen variant; missing when there is none."""
    chosen_number: int
    """Its trial: two variants may have one name. Pages of before have the name alone."""


class Details(TypedDict, total=False):
    """Companion of `summary.json`."""

    models: dict[str, str]
    """Digests of the run's models by name, also where the summary has no figures of them."""
    curves: dict[str, list[Epoch]]
    """By model."""
    targets: dict[str, Searched]
    """By name; the first is shown at first."""
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
    choosing: dict[str, Any]
    """What `orchestrator choose` found, as `choose.json` holds it."""
    examples: dict[str, list[dict[str, Any]]]
    """By ensemble a few test rows: `ensemble.explain.why` of each, with `row`, `id`, `truth`, and of an image
    `image` (a data URI) and `occlusion` (`ensemble.occlusion`, or None)."""
    config: str
    """The run file as YAML, defaults and overrides included."""
    notes: list[str]
    """Sentences that the reader should not miss."""
