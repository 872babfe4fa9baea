"""When a slow call is made a second time (Dean and Barroso 2013, The Tail at Scale), and how often it may be.

Without a budget hedges would double the load of a member just when it is overloaded. Plain data and pure
functions; the latencies come from the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

KEPT = 200
"""Latencies that are remembered."""
LEAST = 20
"""Latencies before which nothing is hedged: no tail is known."""
RENEW = 20
"""Calls after which the tail is worked out again."""
TAIL = 95.0
BURST = 10.0
"""Most second calls that can be saved up."""


@dataclass(frozen=True)
class Hedge:
    """What a member's last calls took, and how many second ones it may still have."""

    latencies_s: tuple[float, ...] = ()
    calls: int = 0
    tail_s: float | None = None
    """95th percentile of the latencies; None while too few are known."""
    tokens: float = BURST


def answered(hedge: Hedge, latency_s: float, share: float) -> Hedge:
    """After a call that took so long; it earns `share` of a second call."""
    latencies = (*hedge.latencies_s, latency_s)[-KEPT:]
    calls, tail = hedge.calls + 1, hedge.tail_s
    if len(latencies) >= LEAST and calls % RENEW == 0:
        tail = float(np.percentile(latencies, TAIL))
    return Hedge(latencies, calls, tail, min(hedge.tokens + share, BURST))


def spent(hedge: Hedge) -> Hedge | None:
    """After a second call was made; None: there must be none."""
    return replace(hedge, tokens=hedge.tokens - 1) if hedge.tokens >= 1 else None
