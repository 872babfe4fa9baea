"""Copies of what a process computes with, each on a thread of its own and lent to one call at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Generic, TypeVar

from deployments.worker import MOST_HANGING, STUCK_S, Watch, Worker
from orchestrator.errors import MemberFailedError

T = TypeVar("T")
M = TypeVar("M")


class Copy(Generic[M]):
    """One copy and its thread."""

    def __init__(self, name: str, load: Callable[[], M]) -> None:
        self.worker = Worker(name)
        self._load = load
        self._model: M | None = self.worker.load(load)

    @property
    def loaded(self) -> M | None:
        """What it computes with; None until it is loaded anew."""
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

    @property
    def sound(self) -> bool:
        """It is loaded, and no call of it hangs."""
        return self._model is not None and not self.worker.hanging


class Pool(Generic[M]):
    """All copies; as many calls run at once.

    Args:
        name: of the threads.
        load: makes a copy, in the thread that will use it.
        copies: how many.
    """

    def __init__(self, name: str, load: Callable[[], M], copies: int = 1) -> None:
        self._copies = [Copy(f"{name}-{number}", load) for number in range(copies)]
        self._free = list(self._copies)
        self._turns = asyncio.Semaphore(copies)  # first come, first served

    def __len__(self) -> int:
        return len(self._copies)

    def loaded(self) -> list[M]:
        """Of each copy that is loaded; of all before the first call."""
        return [copy.loaded for copy in self._copies if copy.loaded is not None]

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[Copy[M]]:
        """A copy that nobody else has, once it is this caller's turn."""
        async with self._turns:
            copy = self._free.pop()
            try:
                yield copy
            finally:
                # First the one that was used last, whose weights are in the cache; last an unsound one.
                self._free.insert(len(self._free) if copy.sound else 0, copy)

    @property
    def calls_that_hang(self) -> int:
        """Calls that were given up and have not returned."""
        return sum(copy.worker.calls_that_hang for copy in self._copies)

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            MemberFailedError: too many calls hang, or one does for too long.
        """
        for copy in self._copies:
            copy.worker.check_health()
        if self.calls_that_hang > MOST_HANGING:
            raise MemberFailedError("too many calls hang", self.calls_that_hang)

    def close(self) -> None:
        """Take no more calls."""
        for copy in self._copies:
            copy.worker.close()
