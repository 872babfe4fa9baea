"""What a trial brought, and what the sampler is told about it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.config.free import Config
from orchestrator.config.measure import Execution
from orchestrator.config.search import Searching, SearchSettings
from orchestrator.search.pareto import Point, front

PARENT = -1
"""Trial number of the row that describes the parent itself."""


@dataclass(frozen=True)
class TrialRow:
    """One trial. Which numbers hold is said by `status`; the others are 0.

    `evaluated`: all but the latency. `ok`: all. `failed`: none; `reason` says why. `stopped`: none but
    `epochs` and `metric`, that of the last epoch.
    """

    number: int
    name: str
    execution: Execution
    config: Config = field(default_factory=dict)
    digest: str = ""
    status: Literal["evaluated", "ok", "failed", "stopped"] = "evaluated"
    metric: float = 0.0
    """Raw value on the validation part, measured in `execution`."""
    drop: float = 0.0
    """How much worse than the parent on the validation part; below 0 when better."""
    drop_bound: float = 0.0
    """Upper confidence bound of `drop`, by the promise's own test."""
    changed: float | None = None
    """Share of validation rows that get another class than the parent's, where that is known."""
    class_drop: float | None = None
    """Drop of the recall of the class that loses most."""
    violations: dict[str, float] = field(default_factory=dict)
    """How far beyond each limit, by its name; kept when <= 0."""
    bytes: int = 0
    latency_ms: float = 0.0
    """Median over blocks at the settings' batch and threads."""
    latency_ci: tuple[float, float] = (0.0, 0.0)
    p95_ms: float | None = None
    """95th percentile of single calls by the clock; None where it was not measured."""
    speedup: float = 0.0
    """The parent's eager latency over this one, measured interleaved."""
    speedup_ci: tuple[float, float] = (0.0, 0.0)
    reason: str = ""
    arm: str = ""
    """Label of an honest arm, like `fp32 eager`; empty for a trial that the sampler suggested."""
    target: str = ""
    """Name of the target whose machine, threads and batch the latency was measured with."""
    seconds: float = 0.0
    """When it ended, from the start of the search; 0 when unknown."""
    plan: tuple[dict[str, Any], ...] = ()
    """The plan's steps as plain values, where they are known."""
    epochs: int = 0
    """Of a trial that was stopped early: how many it trained."""

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def feasible(self) -> bool:
        """Finite, and within every limit: the allowed drop on validation rows, latency and bytes."""
        return self.ok and all(beyond <= 0 for beyond in self.violations.values())

    def failed(self, reason: str) -> TrialRow:
        """This trial, marked failed."""
        return TrialRow(
            self.number,
            self.name,
            self.execution,
            self.config,
            status="failed",
            reason=reason or "unknown",
            arm=self.arm,
            target=self.target,
            seconds=self.seconds,
            plan=self.plan,
        )

    def measured(
        self,
        latency_ms: float,
        latency_ci: tuple[float, float],
        speedup: float,
        speedup_ci: tuple[float, float],
        p95_ms: float | None = None,
    ) -> TrialRow:
        """This trial with its latency; failed when a number is not finite and positive."""
        numbers = (self.metric, latency_ms, *latency_ci, speedup, *speedup_ci)
        if not all(math.isfinite(number) for number in numbers) or latency_ms <= 0:
            return self.failed(f"a measured number is not finite and positive: {numbers}")
        return dataclasses.replace(
            self,
            status="ok",
            latency_ms=latency_ms,
            latency_ci=latency_ci,
            p95_ms=p95_ms,
            speedup=speedup,
            speedup_ci=speedup_ci,
        )

    def limited(self, settings: Searching) -> TrialRow:
        """This trial with how far it is beyond each limit of the settings, as far as is known."""
        beyond: dict[str, float] = {}
        if settings.allowed_drop is not None:
            # A difference of two shares: the last digits are rounding.
            beyond["max_drop"] = round(self.drop - settings.allowed_drop, 12)
        if isinstance(settings, SearchSettings):
            promise = settings.promise
            if promise.max_changed is not None and self.changed is not None:
                beyond["max_changed"] = round(self.changed - promise.max_changed, 12)
            if promise.max_class_drop is not None and self.class_drop is not None:
                beyond["max_class_drop"] = round(self.class_drop - promise.max_class_drop, 12)
        if settings.max_bytes is not None:
            beyond["max_bytes"] = self.bytes / settings.max_bytes - 1
        if settings.max_latency_ms is not None and self.ok:
            beyond["max_latency_ms"] = self.latency_ms / settings.max_latency_ms - 1
        return dataclasses.replace(self, violations=beyond)

    def plain(self) -> dict[str, Any]:
        """As plain JSON values."""
        return dataclasses.asdict(self)


def objectives(row: TrialRow) -> tuple[float, float]:
    """(minus the drop: up, natural log of the latency in ms: down) of an `ok` row.

    Minus the drop is the metric up to a constant, whichever direction the metric has; the log makes a
    factor of two count alike at every speed, as in the front's hypervolume.
    """
    return -row.drop, math.log(row.latency_ms)


def merits(row: TrialRow) -> tuple[float, float, float]:
    """(minus the drop, minus its bound, minus the bytes) of an evaluated row.

    What it has to set against a faster one: the front goes by drop and bytes, the choice by the bound.
    """
    return -row.drop, -row.drop_bound, -float(row.bytes)


def front_of(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """The measured rows that are best in metric, latency and bytes, fastest first.

    Several trials may have led to one artifact in one execution; the first stands for them.
    """
    points = [Point(-row.drop, row.latency_ms, row.bytes) for row in rows]
    found: dict[tuple[str, Execution], TrialRow] = {}
    for row in (rows[index] for index in front(points)):
        found.setdefault((row.digest, row.execution), row)
    return list(found.values())
