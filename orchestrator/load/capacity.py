"""The highest open-loop rate at which a server keeps a bound on its 99th percentile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.errors import ServingError
from orchestrator.load.generate import Report

Probe = Callable[[float], Report]
"""One open-loop run at a rate per second."""
LATE_SHARE = 0.25
"""A generator that is late by this part of the bound, at its own 99th percentile, cannot judge the server."""


@dataclass(frozen=True)
class Capacity:
    """Where the bound is kept, and all probes in order."""

    per_s: float
    """The highest rate that held; 0 when even the lowest did not."""
    probes: tuple[Report, ...]


def highest_rate(
    probe: Probe, p99_ms: float, *, start: float = 50.0, precision: float = 0.05, most: int = 20
) -> Capacity:
    """Double the rate from `start` (or halve it) until the bound breaks (or holds), then bisect.

    Args:
        probe: runs the load, for instance `orchestrator.load.generate.open_loop`.
        p99_ms: bound on latency from the intended time; a failed request counts as infinitely slow.
        start: first rate, per second.
        precision: the answer is within this share of the first rate that failed.
        most: probes.

    Raises:
        ServingError: the generator was too late to say.
    """
    held, broke = 0.0, float("inf")
    rate, probes = start, list[Report]()
    while len(probes) < most and broke > held * (1 + precision) and rate >= 1.0:
        report = probe(rate)
        probes.append(report)
        if _holds(report, p99_ms):
            held = rate
        else:
            broke = rate
        rate = rate * 2 if broke == float("inf") else broke / 2 if not held else (held + broke) / 2
    return Capacity(held, tuple(probes))


def _holds(report: Report, p99_ms: float) -> bool:
    plain = report.plain()
    late = plain["late_p99_ms"]
    if late is not None and late > LATE_SHARE * p99_ms:
        raise ServingError(
            f"the load generator was {late:.1f} ms late at {report.offered_per_s:.0f} requests/s",
            None,
            "give it a core of its own, or fewer things to compete with",
        )
    p99 = plain["p99_ms"]
    return p99 is not None and p99 <= p99_ms
