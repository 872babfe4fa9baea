"""One thread that computes, and a watchdog: a call that hangs keeps its thread, another one takes its place.

A call in native code cannot be stopped. What can be done is to go on without it: whoever waits is told, the
members that it was in are left alone until it returns, and all others are computed by a new thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from orchestrator.config.ensemble import Member
from orchestrator.errors import MemberFailedError

T = TypeVar("T")

STUCK_S = 120.0
"""A call that runs longer marks the replica unhealthy, so that Serve replaces it."""
MOST_HANGING = 3
"""More calls that hang at once do the same."""

logger = logging.getLogger(__name__)


class HangingError(MemberFailedError):
    """A call has taken too long, and is not waited for any more."""


class Watch:
    """What one call is doing, for its watchdog.

    Args:
        longest_s: nobody waits longer than that for the call, so it ends after the part that it is at.
    """

    def __init__(self, longest_s: float = math.inf) -> None:
        self._lock = threading.Lock()
        self._longest_s = longest_s
        self._started = self.moved = time.monotonic()
        """When it last began something."""
        self.given_up = False
        self.members: tuple[Member, ...] = ()
        """Those that are being computed."""

    def begin(self, members: Collection[Member]) -> bool:
        """These are computed next; False when nobody waits any more, so that nothing may be computed."""
        with self._lock:
            now = time.monotonic()
            self.given_up |= now - self._started > self._longest_s
            if self.given_up:
                return False
            self.members, self.moved = tuple(members), now
            return True

    def start(self) -> None:
        """It is the call's turn."""
        self._started = self.moved = time.monotonic()

    def give_up(self) -> None:
        """Nobody waits any more."""
        with self._lock:
            self.given_up = True


class Worker:
    """The thread.

    Args:
        name: of it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._turn = asyncio.Lock()
        self._running: tuple[Future[Any], Watch] | None = None
        """The newest call."""
        self._hanging: dict[int, Watch] = {}
        """Calls that were given up and have not returned."""

    def load(self, function: Callable[[], T]) -> T:
        """Its result, waited for by blocking: for what is loaded at the start."""
        return self._thread.submit(function).result()

    async def run(self, function: Callable[[], T], watch: Watch, limit_s: float) -> T:
        """Its result; one call at a time, the others wait. Not to be cancelled: the thread would go on.

        Args:
            function: tells `watch` what it does.
            watch: of this call.
            limit_s: a call that begins nothing for longer hangs.

        Raises:
            HangingError: it hangs; `watch.members` says in what.
        """
        async with self._turn:
            try:
                return await self._watched(function, watch, limit_s)
            except HangingError:
                watch.give_up()
                self._replace(watch)
                names = ", ".join(member.name for member in watch.members) or self._name
                logger.warning("%s: a call hangs, a new thread goes on without it", names)
                raise

    @property
    def calls_that_hang(self) -> int:
        """Calls that were given up and have not returned."""
        return len(self._hanging)

    @property
    def hanging(self) -> frozenset[Member]:
        """Members with a call that hangs."""
        return frozenset(member for watch in self._hanging.values() for member in watch.members)

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            MemberFailedError: too much hangs, or for too long.
        """
        watches = list(self._hanging.values())
        if self._running is not None and not self._running[0].done():
            watches.append(self._running[1])
        longest = max((time.monotonic() - watch.moved for watch in watches), default=0.0)
        if longest > STUCK_S:
            raise MemberFailedError("a batch is still running after", f"{longest:.0f} s")
        if len(self._hanging) > MOST_HANGING:
            raise MemberFailedError("too many calls hang", len(self._hanging))

    def close(self) -> None:
        """Take no more calls."""
        self._thread.shutdown(wait=False)

    async def _watched(self, function: Callable[[], T], watch: Watch, limit_s: float) -> T:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[T] = loop.create_future()
        watch.start()
        future = self._thread.submit(function)
        self._running = future, watch
        future.add_done_callback(lambda _: _soon(loop, _deliver, future, waiter))
        timer: asyncio.TimerHandle | None = None

        def look(left_s: float) -> None:
            nonlocal timer
            if left_s <= 0:
                _late(waiter)
            elif left_s < math.inf:
                timer = loop.call_later(left_s, lambda: look(watch.moved + limit_s - time.monotonic()))

        look(limit_s)
        try:
            return await waiter
        finally:
            if timer is not None:
                timer.cancel()

    def _replace(self, watch: Watch) -> None:
        assert self._running is not None
        future, _ = self._running
        self._running = None
        self._thread.shutdown(wait=False)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        loop = asyncio.get_running_loop()
        self._hanging[id(future)] = watch
        future.add_done_callback(lambda _: _soon(loop, self._returned, future))

    def _returned(self, future: Future[Any]) -> None:
        del self._hanging[id(future)]


def _soon(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: object) -> None:
    """Call it on the loop, if that still runs."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *args)


def _late(waiter: asyncio.Future[T]) -> None:
    if not waiter.done():
        waiter.set_exception(HangingError("a call hangs"))


def _deliver(future: Future[T], waiter: asyncio.Future[T]) -> None:
    if waiter.done():
        return
    error = future.exception()
    if error is None:
        waiter.set_result(future.result())
    else:
        waiter.set_exception(error)
