"""Latency: several calls measured in turns, so that all see the same machine.

One figure is the median over blocks; a block repeats the call for some milliseconds and its value is
the mean time of a call. Ratios are taken block by block between neighbours in time, which cancels most
of what a shared machine adds, and are given with an interval (Kalibera and Jones 2013, "Rigorous
Benchmarking in Reasonable Time").

With one thread a block's time is the processor time of the process where that is less than what passed: on a
quiet machine the two are equal, and beside other work a call that is longer than a time slice is always
interrupted and a short one seldom, which no median of clock times repairs (decision 90).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from orchestrator.config.measure import Execution, LatencySettings
from orchestrator.measure.intervals import Interval, median_interval

METHOD = 3
"""Raise when the same call would be given another figure: records of another method do not count."""
Call = Callable[[], object]
Clock = Callable[[], float]
"""Seconds, monotone."""
_COARSE_S = 1e-5
PROCESSOR: Clock = (
    time.process_time if time.get_clock_info("process_time").resolution < _COARSE_S else time.perf_counter
)
"""Processor time of this process and all its threads, where the system counts it finely."""
Merits = tuple[float, ...]
"""What counts of a call besides its speed, each the more the better."""
WARM_UP_CALLS = 3
LOOKS = 1.5
"""From one look at the intervals to the next, so many times the blocks."""


@dataclass
class Samples:
    """Times of one call, in ms."""

    blocks: list[float] = field(default_factory=list)
    """Mean time of a call in each block."""
    calls: list[float] = field(default_factory=list)
    """Every call, by the clock."""


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
    """Over single calls, by the clock."""
    ratio: float = 1.0
    """The baseline's time over this one's: above 1 is faster than the baseline."""
    ratio_ci: Interval = (1.0, 1.0)
    rounds: int = 0
    """Blocks that were measured."""
    tail: float = 1.0
    """The 95th percentile over the median, both of single calls by the clock."""

    def at_pace(self, reference_ms: float) -> Latency:
        """The latency as it is while the baseline takes `reference_ms`.

        What slows the whole machine slows the baseline beside it, so latencies of different hours can be
        compared by their ratios; this is the ratio in ms.
        """
        median = reference_ms / self.ratio
        slow, fast = self.ratio_ci
        low, high = reference_ms / fast, reference_ms / slow
        if slow == fast == 1:
            # The baseline itself: each ratio to its own blocks is one, so the spread is that of its times.
            low, high = (end * median / self.median_ms for end in self.ci)
        return replace(
            self,
            median_ms=median,
            ci=(low, high),
            p95_ms=self.p95_ms * median / self.median_ms,
        )

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
            "rounds": self.rounds,
            "tail": self.tail,
        }


class Rival(NamedTuple):
    """What calls compete with."""

    merits: Merits
    speed: float
    """How many times as fast as the baseline it is at least: the lower end of its interval."""


@dataclass(frozen=True)
class Race:
    """What the measured calls are good for, so that no time goes to one that has lost."""

    merits: Mapping[str, Merits] = field(default_factory=dict)
    """By the call's name; one without is measured to the end."""
    rivals: Sequence[Rival] = ()
    """Of earlier measurements; the measured calls compete with each other as well."""

    def lost(self, found: Mapping[str, tuple[float, Interval]]) -> set[str]:
        """Of calls and their ratios those that are surely slower than something no worse in all merits."""
        racing = {name: interval for name, (_, interval) in found.items() if name in self.merits}
        rivals = [*self.rivals, *(Rival(self.merits[name], least) for name, (least, _) in racing.items())]
        return {
            name
            for name, (_, most) in racing.items()
            if any(_surpasses(rival, self.merits[name], most) for rival in rivals)
        }


def measure(
    calls: Mapping[str, Call],
    settings: LatencySettings,
    *,
    baseline: str,
    race: Race | None = None,
    clock: Clock = time.perf_counter,
    processor: Clock = PROCESSOR,
) -> dict[str, Samples]:
    """Time the calls in interleaved blocks, after a warm-up of each.

    Every round has one block of the baseline and of each call that is not settled; each round starts with
    another call, so that none always follows the same one. Garbage is collected before and not during the
    rounds.

    A call is settled when the interval of its ratio is narrow enough (`settings.tolerance`), which is looked
    at after `blocks` rounds and then at each number of rounds that is `LOOKS` times the last (a fixed-width
    sequential procedure: Chow and Robbins 1965). Stopping depends on the spread and not on the value, so the
    median gets no bias from it; but one stops rather where the spread happens to look small, so the interval
    holds a little less often than 95 % of the time (simulated in `tests/measure/test_latency.py`).

    In a race a call that has lost is settled as well, however wide its interval, for a better one is there
    (Maron and Moore 1994, "Hoeffding Races"). That does depend on the value, so the figure of such a call
    leans to the slow side.

    Args:
        calls: What to time, by name.
        settings: Numbers of blocks and their length; batch and threads are the callers' business.
        baseline: Name of the call that ratios are to. Alone it is settled by the interval of its own median.
        race: What the calls compete in, if they do.
        clock: What passes.
        processor: What the process works of it; counts with one thread alone, since several work at once.
    """
    worked = processor if settings.threads == 1 else clock
    repeats = {name: _warm_up(call, settings.block_ms, clock, worked) for name, call in calls.items()}
    samples = {name: Samples() for name in calls}
    names, look = list(calls), settings.blocks
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(settings.most_blocks):
            if turn == look:
                names = _unsettled(samples, names, baseline, settings.tolerance, race or Race())
                look = math.ceil(look * LOOKS)
            if not names:
                break
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                times, block = _timed(calls[name], repeats[name], clock, worked)
                samples[name].calls += times
                samples[name].blocks.append(block)
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
    race: Race | None = None,
    clock: Clock = time.perf_counter,
    processor: Clock = PROCESSOR,
) -> dict[str, Latency]:
    """Measure the calls together and summarize each against the call named `baseline`.

    Args:
        calls: What to time, by name.
        settings: How; its batch and threads are noted in the result.
        baseline: Name of the call that ratios are to.
        executions: Execution of each call, where it is not eager.
        race: As of `measure`.
        clock: What passes.
        processor: What the process works of it.
    """
    samples = measure(calls, settings, baseline=baseline, race=race, clock=clock, processor=processor)
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
    median, p95 = np.quantile(samples.calls, (0.5, 0.95))
    return Latency(
        batch=settings.batch,
        threads=settings.threads,
        execution=execution,
        median_ms=float(np.median(samples.blocks)),
        ci=median_interval(samples.blocks),
        p95_ms=float(p95),
        ratio=own_ratio,
        ratio_ci=ratio_ci,
        rounds=len(samples.blocks),
        tail=float(p95 / median) if median > 0 else 1.0,
    )


def ratio(baseline_blocks: Sequence[float], blocks: Sequence[float]) -> tuple[float, Interval]:
    """How many times faster than the baseline: median over rounds of baseline / own, with its interval.

    The baseline may have gone on for others: what came after the last own block is left out.
    """
    own = np.asarray(blocks, np.float64)
    rounds = np.asarray(baseline_blocks, np.float64)[: len(own)] / own
    return float(np.median(rounds)), median_interval(rounds)


def _unsettled(
    samples: Mapping[str, Samples], names: Sequence[str], baseline: str, tolerance: float, race: Race
) -> list[str]:
    """The calls to go on with, the baseline beside them: whose ratio is not yet narrow, and that may win."""
    if len(samples) == 1:
        blocks = samples[baseline].blocks
        return [] if _is_narrow(float(np.median(blocks)), median_interval(blocks), tolerance) else [baseline]
    reference = samples[baseline].blocks
    found = {name: ratio(reference, own.blocks) for name, own in samples.items() if name != baseline}
    lost = race.lost(found)
    others = [
        name
        for name in names
        if name != baseline and name not in lost and not _is_narrow(*found[name], tolerance)
    ]
    return [baseline, *others] if others else []


def _surpasses(rival: Rival, merits: Merits, most: float) -> bool:
    return rival.speed > most and all(theirs >= own for theirs, own in zip(rival.merits, merits, strict=True))


def _is_narrow(value: float, interval: Interval, tolerance: float) -> bool:
    return max(interval[1] - value, value - interval[0]) <= tolerance * value


def _warm_up(call: Call, block_ms: float, clock: Clock, worked: Clock) -> int:
    """Call until a block's time has passed, at least three times; returns the calls that fill a block."""
    passed = 0.0
    times: list[float] = []
    while len(times) < WARM_UP_CALLS or passed < block_ms:
        (whole,), work = _timed(call, 1, clock, worked)
        passed += whole
        times.append(work)
    # The first calls allocate and compile; the second half shows the pace.
    pace = float(np.median(times[len(times) // 2 :]))
    return max(1, round(block_ms / pace)) if pace > 0 else len(times)


def _timed(call: Call, repeats: int, clock: Clock, worked: Clock) -> tuple[list[float], float]:
    """Time that passed in each call, and the mean time of a call, in ms."""
    times = []
    before = worked()
    for _ in range(repeats):
        start = clock()
        call()
        times.append((clock() - start) * 1e3)
    work = (worked() - before) * 1e3
    return times, min(sum(times), work) / repeats
