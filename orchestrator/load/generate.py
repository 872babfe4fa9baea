"""Open-loop and closed-loop load.

An open loop sends at Poisson times that were drawn beforehand, whether or not earlier answers have come, and
counts latency from the drawn time: a server that stalls is charged for all who would have waited (no
coordinated omission; Tene, "How NOT to measure latency"). A closed loop keeps N requests in work, as `wrk`
does.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from orchestrator.load.connection import Connection, Reply, Target

T = TypeVar("T")
Seen = Callable[[int, Reply | None, float], None]
"""Number, reply (None where there was none) and latency in seconds of a request."""

QUANTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "p999_ms": 0.999}
LATE_MS = 1.0
"""A request sent later than this after its drawn time is counted as late."""
RETRY_S = 0.01
"""Pause of a closed-loop client whose request failed."""


@dataclass
class Report:
    """What a load run saw. A request that failed counts as infinitely slow in every quantile."""

    offered_per_s: float | None
    """Rate of the drawn times; None for a closed loop."""
    seconds: float = 0.0
    """From the first request to the last answer, or to the end of the drawn times if that is later."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """How many requests ended with which status, as `timeout`, or as `connection` (lost or refused)."""
    latencies_ms: list[float] = field(default_factory=list)
    """Of each request."""
    late_ms: list[float] = field(default_factory=list)
    """How long after its drawn time the generator itself came to each request."""

    @property
    def requests(self) -> int:
        """All that were sent or should have been."""
        return len(self.latencies_ms)

    @property
    def answered(self) -> int:
        """Requests with status 200."""
        return self.outcomes["200"]

    @property
    def per_s(self) -> float:
        """Good answers per second."""
        return self.answered / self.seconds if self.seconds else 0.0

    def quantile_ms(self, share: float) -> float | None:
        """A quantile of latency; None where it falls on failed requests, or nothing was sent."""
        return _quantile(np.asarray(self.latencies_ms), share)

    def plain(self) -> dict[str, Any]:
        """As plain JSON values."""
        known: dict[str, Any] = {
            "requests": self.requests,
            "seconds": self.seconds,
            "per_s": self.per_s,
            "failed": self.requests - self.answered,
            "outcomes": dict(sorted(self.outcomes.items())),
            **{name: self.quantile_ms(share) for name, share in QUANTILES.items()},
            "max_ms": self.quantile_ms(1.0),
        }
        if self.offered_per_s is not None:
            late = np.asarray(self.late_ms)
            known["offered_per_s"] = self.offered_per_s
            known["late"] = int((late > LATE_MS).sum())
            known["late_p99_ms"] = _quantile(late, 0.99)
        return known

    def note(self, outcome: str, latency_s: float) -> None:
        """One request's end."""
        self.outcomes[outcome] += 1
        self.latencies_ms.append(latency_s * 1e3 if outcome == "200" else float("inf"))


def poisson_times(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Times [N] in 0..`seconds` of a Poisson process with `rate` per second."""
    random = np.random.default_rng(seed)
    times = np.cumsum(random.exponential(1.0 / rate, max(16, int(2 * rate * seconds) + 64)))
    while times[-1] < seconds:
        more = random.exponential(1.0 / rate, len(times))
        times = np.concatenate([times, times[-1] + np.cumsum(more)])
    return times[times < seconds]


def open_loop(
    target: Target | Sequence[Target],
    *,
    rate: float,
    seconds: float,
    seed: int = 0,
    connections: int = 256,
    timeout_s: float = 10.0,
    seen: Seen | None = None,
) -> Report:
    """Send at Poisson times and wait for all answers.

    Args:
        target: what is sent where; of several, to one server, the next one each time.
        rate: mean requests per second.
        seconds: length of the schedule.
        seed: of the times.
        connections: most connections; a request waits for a free one, and that wait counts.
        timeout_s: longest latency; later answers are not waited for.
        seen: told of each request's end.
    """
    targets = [target] if isinstance(target, Target) else list(target)
    load = _Load(targets, Report(rate), seconds, connections, timeout_s, seen)
    return _run(_open_loop(load, poisson_times(rate, seconds, seed)))


def closed_loop(target: Target, *, connections: int, seconds: float, timeout_s: float = 10.0) -> Report:
    """Keep `connections` requests in work for `seconds`; those in work at the end are waited for."""
    return _run(_closed_loop(_Load([target], Report(None), seconds, connections, timeout_s)))


def _run(work: Coroutine[Any, Any, T]) -> T:
    # epoll rounds each wait up to whole milliseconds; select does not.
    def loop() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(work)


class _Pool:
    """Connections that are opened when they are needed; the one used last is used first."""

    def __init__(self, target: Target, most: int) -> None:
        self._target = target
        self._room = asyncio.Semaphore(most)
        self._idle: list[Connection] = []

    async def send(self, request: bytes) -> Reply:
        async with self._room:
            connection = await self._take()
            try:
                reply = await connection.send(request)
            except BaseException:
                connection.close()
                raise
            self._idle.append(connection)
            return reply

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return await Connection.open(self._target)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


@dataclass(frozen=True)
class _Load:
    targets: Sequence[Target]
    report: Report
    seconds: float
    connections: int
    timeout_s: float
    seen: Seen | None = None

    def pool(self) -> _Pool:
        return _Pool(self.targets[0], self.connections)

    async def timed(self, pool: _Pool, number: int, since: float) -> None:
        """One request, its latency counted from `since` on the loop's clock."""
        now = asyncio.get_running_loop().time
        reply: Reply | None = None
        try:
            async with asyncio.timeout_at(since + self.timeout_s):
                reply = await pool.send(self.targets[number % len(self.targets)].request)
                outcome = str(reply.status)
        except TimeoutError:
            outcome = "timeout"
        except OSError:
            outcome = "connection"
        latency_s = now() - since
        self.report.note(outcome, latency_s)
        if self.seen is not None:
            self.seen(number, reply, latency_s)


async def _open_loop(load: _Load, times: NDArray[np.float64]) -> Report:
    now = asyncio.get_running_loop().time
    pool, report = load.pool(), load.report
    start = now()
    async with asyncio.TaskGroup() as group:
        for number, time in enumerate(times.tolist()):
            wait = start + time - now()
            if wait > 0:
                await asyncio.sleep(wait)
            report.late_ms.append((now() - start - time) * 1e3)
            group.create_task(load.timed(pool, number, start + time))
    report.seconds = max(now() - start, load.seconds)
    pool.close()
    return report


async def _closed_loop(load: _Load) -> Report:
    now = asyncio.get_running_loop().time
    pool, report = load.pool(), load.report
    start = now()

    async def client() -> None:
        while (since := now()) < start + load.seconds:
            good = report.answered
            await load.timed(pool, 0, since)
            if report.answered == good:
                await asyncio.sleep(RETRY_S)

    async with asyncio.TaskGroup() as group:
        for _ in range(load.connections):
            group.create_task(client())
    report.seconds = now() - start
    pool.close()
    return report


def _quantile(values: NDArray[np.float64], share: float) -> float | None:
    if not len(values):
        return None
    # Not interpolated: between a number and infinity there is nothing.
    found = float(np.quantile(values, share, method="higher"))
    return found if np.isfinite(found) else None
