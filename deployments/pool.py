"""Copies of what a process computes with, each on a thread of its own and lent to one call at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Generic, TypeVar

from deployments.worker import STUCK_S, Watch, Worker
from orchestrator.config.ensemble import Member

T = TypeVar("T")
M = TypeVar("M")


class Copy(Generic[M]):
    """One copy and its thread."""

    def __init__(self, name: str, load: Callable[[], M]) -> None:
        self.worker = Worker(name)
        self._load = load
        self._model: M | None = self.worker.load(load)

    @property
    def loaded(self) -> M:
        """What was loaded at the start; not while a call runs."""
        assert self._model is not None
        return self._model

    async def run(self, function: Callable[[M], T], watch: Watch, limit_s: float) -> T:
        """The function's result for the copy, by its thread; see `Worker.run`.

        Raises:
            HangingError: it takes longer; `watch.members` says in what.
        """
        if self._model is None:
            self._model = await self.worker.run(self._load, Watch(), STUCK_S)
        return await self.worker.run(partial(function, self._model), watch, limit_s)

    def forget(self) -> None:
        """It belongs to a call that hangs: the next one loads it anew."""
        self._model = None


class Pool(Generic[M]):
    """All copies; as many calls run at once.

    Args:
        name: of the threads.
        load: makes a copy, in the thread that will use it.
        copies: how many.
    """

    def __init__(self, name: str, load: Callable[[], M], copies: int = 1) -> None:
        self._copies = [Copy(f"{name}-{number}", load) for number in range(copies)]
        # The one that was used last is the one whose weights are in the cache.
        self._free: asyncio.LifoQueue[Copy[M]] = asyncio.LifoQueue()
        for copy in self._copies:
            self._free.put_nowait(copy)

    def __len__(self) -> int:
        return len(self._copies)

    @property
    def first(self) -> M:
        """Of one copy, to look at before the first call."""
        return self._copies[0].loaded

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[Copy[M]]:
        """A copy that nobody else has, once there is one."""
        copy = await self._free.get()
        try:
            yield copy
        finally:
            self._free.put_nowait(copy)

    @property
    def calls_that_hang(self) -> int:
        """Calls that were given up and have not returned."""
        return sum(copy.worker.calls_that_hang for copy in self._copies)

    @property
    def hanging(self) -> frozenset[Member]:
        """Members with a call that hangs, in any copy."""
        return frozenset[Member]().union(*(copy.worker.hanging for copy in self._copies))

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            MemberFailedError: too many calls of one thread hang, or for too long.
        """
        for copy in self._copies:
            copy.worker.check_health()

    def close(self) -> None:
        """Take no more calls."""
        for copy in self._copies:
            copy.worker.close()
