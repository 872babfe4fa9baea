"""Latency: several calls measured in turns, so that all see the same machine.

One figure is the median over blocks; a block repeats the call for some milliseconds and its value is
the mean time of a call. Ratios are taken block by block between neighbours in time, which cancels most
of what a shared machine adds, and are given with an interval (Kalibera and Jones 2013, "Rigorous
Benchmarking in Reasonable Time").
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.config.measure import Execution, LatencySettings
from orchestrator.measure.intervals import Interval, median_interval
from orchestrator.measure.machine import machine

__all__ = ["Latency", "Samples", "compare", "machine", "measure", "ratio", "summarize"]

Call = Callable[[], object]
WARM_UP_CALLS = 3


@dataclass
class Samples:
    """Times of one call, in ms."""

    blocks: list[float] = field(default_factory=list)
    """Mean time of a call in each block."""
    calls: list[float] = field(default_factory=list)
    """Every call."""


@dataclass(frozen=True)
class Latency:
    """One latency figure; times are of one call with `batch` rows."""

    batch: int
    threads: int
    execution: Execution
    median_ms: float
    ci: Interval
    """95 % bootstrap interval of the median over blocks."""
    p95_ms: float
    """Over single calls."""
    ratio: float = 1.0
    """The baseline's time over this one's: above 1 is faster than the baseline."""
    ratio_ci: Interval = (1.0, 1.0)

    def plain(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "batch": self.batch,
            "threads": self.threads,
            "execution": self.execution,
            "median_ms": self.median_ms,
            "ci": list(self.ci),
            "p95_ms": self.p95_ms,
            "ratio": self.ratio,
            "ratio_ci": list(self.ratio_ci),
        }


def measure(
    calls: Mapping[str, Call], settings: LatencySettings, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Samples]:
    """Time the calls in interleaved blocks, after a warm-up of each.

    Every round has one block of each call; each round starts with another call, so that none always
    follows the same one. Garbage is collected before and not during the rounds.

    Args:
        calls: What to time, by name.
        settings: Number of blocks and their length; batch and threads are the callers' business.
        clock: Seconds, monotone.
    """
    repeats = {name: _warm_up(call, settings.block_ms, clock) for name, call in calls.items()}
    samples = {name: Samples() for name in calls}
    names = list(calls)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(settings.blocks):
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                times = [_time(calls[name], clock) for _ in range(repeats[name])]
                samples[name].calls += times
                samples[name].blocks.append(sum(times) / len(times))
    finally:
        if collecting:
            gc.enable()
    return samples


def compare(
    calls: Mapping[str, Call],
    settings: LatencySettings,
    *,
    baseline: str,
    executions: Mapping[str, Execution] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    """Measure the calls together and summarize each against the call named `baseline`.

    Args:
        calls: What to time, by name.
        settings: How; its batch and threads are noted in the result.
        baseline: Name of the call that ratios are to.
        executions: Execution of each call, where it is not eager.
        clock: Seconds, monotone.
    """
    samples = measure(calls, settings, clock=clock)
    known = executions or {}
    return {
        name: summarize(found, settings, known.get(name, "eager"), samples[baseline])
        for name, found in samples.items()
    }


def summarize(
    samples: Samples, settings: LatencySettings, execution: Execution, baseline: Samples | None = None
) -> Latency:
    """The figure of one call's samples; without a baseline its ratio is 1."""
    own_ratio, ratio_ci = (1.0, (1.0, 1.0)) if baseline is None else ratio(baseline.blocks, samples.blocks)
    return Latency(
        batch=settings.batch,
        threads=settings.threads,
        execution=execution,
        median_ms=float(np.median(samples.blocks)),
        ci=median_interval(samples.blocks),
        p95_ms=float(np.quantile(samples.calls, 0.95)),
        ratio=own_ratio,
        ratio_ci=ratio_ci,
    )


def ratio(baseline_blocks: Sequence[float], blocks: Sequence[float]) -> tuple[float, Interval]:
    """How many times faster than the baseline: median over rounds of baseline / own, with its interval."""
    rounds = np.asarray(baseline_blocks, np.float64) / np.asarray(blocks, np.float64)
    return float(np.median(rounds)), median_interval(rounds)


def _warm_up(call: Call, block_ms: float, clock: Callable[[], float]) -> int:
    """Call until a block's time has passed, at least three times; returns the calls that fill a block."""
    times: list[float] = []
    while len(times) < WARM_UP_CALLS or sum(times) < block_ms:
        times.append(_time(call, clock))
    # The first calls allocate and compile; the second half shows the pace.
    pace = float(np.median(times[len(times) // 2 :]))
    return max(1, round(block_ms / pace)) if pace > 0 else len(times)


def _time(call: Call, clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return (clock() - start) * 1e3
