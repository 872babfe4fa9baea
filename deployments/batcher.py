"""A batcher that does not fragment: it collects only while all workers are busy.

`serve.batch` freezes a batch each time its wait ends, even while the worker is busy, so that under load the
model sees many small batches (measured: mean 3 of 32). Here a batch is cut at the moment a worker is
free, from all that waits: one item when idle (no added latency), full batches under load.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from orchestrator.errors import DeadlineError, MemberFailedError, OrchestratorError, OverloadedError


class Rowwise(Protocol):
    """What a call gives: something with one part for each row, like an array."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Self: ...


T = TypeVar("T", bound=Rowwise)
Call = Callable[[np.ndarray], Awaitable[T]]
"""Rows in, one part of the answer for each out."""
PACE = 0.2
"""Weight of the newest call in the mean time that a row takes."""


@dataclass(frozen=True)
class _Item(Generic[T]):
    rows: np.ndarray
    answer: asyncio.Future[T]


class Batcher(Generic[T]):
    """Gathers the rows of concurrent callers into calls of at most `max_rows` rows, so many calls at a time.

    An item is never cut: one with more than `max_rows` rows is a batch of its own. An item whose caller was
    cancelled (its deadline is over) is dropped before its batch starts. When a batch of several items fails,
    each is tried alone, so that only the one at fault fails.

    Args:
        call: computes one batch.
        max_rows: most rows of a batch of several items.
        max_queued: most rows that may wait.
        at_once: most calls that run at once.
        spoilt: whether an answer must be computed anew for each item, since one item may have spoilt it for
            the others.
        timed: told the rows and seconds of each call.
    """

    def __init__(
        self,
        call: Call[T],
        *,
        max_rows: int,
        max_queued: int,
        at_once: int = 1,
        spoilt: Callable[[T], bool] = lambda _: False,
        timed: Callable[[int, float], None] = lambda _rows, _seconds: None,
    ) -> None:
        self._call = call
        self._max_rows = max_rows
        self._max_queued = max_queued
        self._at_once = at_once
        self._spoilt = spoilt
        self._timed = timed
        self._queue: deque[_Item[T]] = deque()
        self._queued = 0
        self._workers: set[asyncio.Task[Any]] = set()
        self._running: dict[object, float] = {}
        """When each call began."""
        self._row_s: float | None = None

    @property
    def busy_s(self) -> float:
        """Seconds that the longest of the current calls has been running; 0 when idle."""
        return time.monotonic() - min(self._running.values()) if self._running else 0.0

    @property
    def queued(self) -> int:
        """Rows that wait."""
        return self._queued

    @property
    def wait_s(self) -> float:
        """Expected time until all rows that wait now are computed, by what a row took lately."""
        return self._queued * (self._row_s or 0.0) / self._at_once

    async def submit(self, rows: np.ndarray, timeout_s: float = math.inf) -> T:
        """The answer for `rows` [b, ...], computed together with other callers' rows.

        Args:
            rows: at least one.
            timeout_s: Time that is left for it. The caller waits no longer, so who would wait in vain is
                refused at once.

        Raises:
            OverloadedError: too many rows wait already, or their computation will take longer.
            DeadlineError: the time is over.
            MemberFailedError: the computation failed, or gave another number of rows.
        """
        if self._queue:
            self._admit(len(rows), timeout_s)
        loop = asyncio.get_running_loop()
        item: _Item[T] = _Item(rows, loop.create_future())
        self._queue.append(item)
        self._queued += len(rows)
        if len(self._workers) < self._at_once:
            self._workers.add(asyncio.create_task(self._work()))
        if timeout_s == math.inf:
            return await item.answer
        # A timer costs a quarter of `asyncio.timeout`.
        timer = loop.call_later(timeout_s, _late, item.answer, timeout_s)
        try:
            return await item.answer
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Stop; whoever waits is cancelled."""
        workers = set(self._workers)
        for worker in workers:
            worker.cancel()
        if workers:
            await asyncio.wait(workers)
        # One that was cancelled before its first step did nothing.
        self._workers.clear()
        self._cancel(self._queue)

    def _admit(self, rows: int, timeout_s: float) -> None:
        wait_s = self.wait_s
        if self._queued + rows > self._max_queued:
            raise OverloadedError.after(wait_s, "too many rows are waiting", self._queued)
        if wait_s > timeout_s:
            raise OverloadedError.after(
                wait_s - timeout_s, "no answer is possible in time: rows that wait", self._queued
            )

    async def _work(self) -> None:
        worker, batch = asyncio.current_task(), list[_Item[T]]()
        assert worker is not None
        try:
            while batch := self._take():
                await self._answer(batch)
        finally:
            # At once: what is submitted before the loop's next turn needs another worker.
            self._workers.discard(worker)
            self._cancel([*batch, *self._queue])

    def _cancel(self, items: Iterable[_Item[T]]) -> None:
        for item in items:
            item.answer.cancel()
        self._queue.clear()
        self._queued = 0

    def _take(self) -> list[_Item[T]]:
        """What waits, or a fair share of it while other workers are free, too."""
        batch: list[_Item[T]] = []
        free = self._at_once - len(self._running)
        most, size = min(self._max_rows, -(-self._queued // free)), 0
        while self._queue and (not batch or size + len(self._queue[0].rows) <= most):
            item = self._queue.popleft()
            self._queued -= len(item.rows)
            if not item.answer.done():
                batch.append(item)
                size += len(item.rows)
        return batch

    async def _answer(self, batch: list[_Item[T]]) -> None:
        try:
            outputs = await self._run([item.rows for item in batch])
        except OrchestratorError as error:
            if len(batch) > 1:
                await self._alone(batch)
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        if len(batch) > 1 and self._spoilt(outputs):
            await self._alone(batch)
            return
        start = 0
        for item in batch:
            end = start + len(item.rows)
            if not item.answer.done():
                item.answer.set_result(outputs[start:end] if len(batch) > 1 else outputs)
            start = end

    async def _alone(self, batch: list[_Item[T]]) -> None:
        for item in batch:
            if not item.answer.done():
                await self._answer([item])

    async def _run(self, parts: list[np.ndarray]) -> T:
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        call, started = object(), time.monotonic()
        self._running[call] = started
        try:
            outputs = await self._call(rows)
        except OrchestratorError:
            raise
        except Exception as error:
            raise MemberFailedError("computing a batch failed", f"{type(error).__name__}: {error}") from error
        finally:
            spent = time.monotonic() - started
            self._pace(spent / len(rows))
            self._timed(len(rows), spent)
            del self._running[call]
        if len(outputs) != len(rows):
            raise MemberFailedError(f"{len(rows)} rows in, but rows out", len(outputs))
        return outputs

    def _pace(self, row_s: float) -> None:
        self._row_s = row_s if self._row_s is None else self._row_s + PACE * (row_s - self._row_s)


def _late(answer: asyncio.Future[T], timeout_s: float) -> None:
    if not answer.done():
        answer.set_exception(DeadlineError("no answer in time", f"{timeout_s:g} s"))
