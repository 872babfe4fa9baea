"""What an ensemble costs before it is built: latency, its 99th percentile and core time of one call.

The model, on purpose a simple one:

- A call of `batch` rows asks the members of the first stage for all of them. A later stage is asked for the
  rows that reach it; they are taken to come independently, so their number is binomial.
- A member's call takes what was measured of it at several batches, on a straight line between them. That no
  row reaches a member costs nothing; that one row does costs a whole call of one row.
- Every member that is asked adds `walk_ms`, the ensemble's own work, which is measured too.
- `fused`: one thread runs the members one after the other, so their times add up. `distributed`: the
  members of a stage run side by side, so the slowest counts, and every stage that is asked adds a hop.
- The 99th percentile adds up, over stages, the member's tail (its 95th percentile over its median, as
  measured at its largest batch) at the 99th percentile of the number of rows. Tails that do not come
  together make this too large; waiting for other requests is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import lgamma

import numpy as np
import numpy.typing as npt

from orchestrator.config.serving import Placement

Floats = npt.NDArray[np.float64]
_TAIL = 0.99


@dataclass(frozen=True, eq=False)
class CallTime:
    """How long a member's call takes, by its rows."""

    median_ms: Mapping[int, float]
    """By number of rows, 1 among them."""
    tail: float = 1.0
    """95th percentile of single calls over the median."""

    def ms(self, rows: npt.ArrayLike) -> Floats:
        """Time of calls with so many rows; beyond the largest measured batch in proportion to it."""
        wanted = np.asarray(rows, dtype=np.float64)
        known = sorted(self.median_ms)
        times = [self.median_ms[count] for count in known]
        inside = np.interp(wanted, known, times)
        found = np.where(wanted > known[-1], times[-1] * wanted / known[-1], inside)
        return np.asarray(np.where(wanted > 0, found, 0.0))


@dataclass(frozen=True)
class Stage:
    """Members that are asked at one time."""

    reach: float
    """Share of the rows that they are asked for."""
    members: tuple[CallTime, ...]
    """Those that no earlier stage has asked."""


@dataclass(frozen=True)
class CallCost:
    """Of one call."""

    latency_ms: float
    p99_ms: float
    core_ms: float
    """Time that cores are busy with it."""


def call_cost(
    stages: Sequence[Stage], batch: int, placement: Placement, *, walk_ms: float, hop_ms: float
) -> CallCost:
    """What one call of `batch` rows takes; see the module for the model.

    Args:
        stages: in order, the first with reach 1.
        batch: rows of the call.
        placement: where the members run.
        walk_ms: the ensemble's own work for each member that is asked.
        hop_ms: what asking another deployment adds; of a fused ensemble nothing.
    """
    latency = p99 = core = 0.0
    for stage in stages:
        if not stage.members:
            continue
        chances, asked, high = arrivals(batch, stage.reach)
        times = [_up_to(member, batch) for member in stage.members]
        usual = np.array([float(chances @ time) for time in times])
        worst = np.array(
            [member.tail * time[high] for member, time in zip(stage.members, times, strict=True)]
        )
        own = walk_ms * len(stage.members)
        if placement == "fused":
            latency += float(usual.sum()) + asked * own
            p99 += float(worst.sum()) + (own if high else 0.0)
            core += float(usual.sum()) + asked * own
        else:
            latency += float(usual.max()) + asked * (own + hop_ms)
            p99 += float(worst.max()) + (own + hop_ms if high else 0.0)
            core += float(usual.sum()) + asked * (own + hop_ms * len(stage.members))
    return CallCost(latency, p99, core)


@lru_cache(maxsize=4096)
def _up_to(member: CallTime, batch: int) -> Floats:
    """Times of calls of 0 to `batch` rows."""
    return member.ms(np.arange(batch + 1))


@lru_cache(maxsize=4096)
def arrivals(batch: int, reach: float) -> tuple[Floats, float, int]:
    """Binomial chances [batch + 1] of 0 to `batch` rows, that of at least one, and the 99th percentile."""
    if reach <= 0 or reach >= 1:
        certain = np.zeros(batch + 1)
        certain[batch if reach >= 1 else 0] = 1.0
        return certain, float(reach >= 1), batch if reach >= 1 else 0
    counts = np.arange(batch + 1)
    logs = _log_choices(batch) + counts * np.log(reach) + (batch - counts) * np.log1p(-reach)
    chances = np.exp(logs)
    # A hair below: a sum that should be 0.99 must not ask for one more row.
    high = int(np.searchsorted(np.cumsum(chances), _TAIL - 1e-12))
    return chances, float(1.0 - chances[0]), min(high, batch)


@cache
def _log_choices(batch: int) -> Floats:
    return np.array(
        [lgamma(batch + 1) - lgamma(count + 1) - lgamma(batch - count + 1) for count in range(batch + 1)]
    )
