"""A member's calls under its failure policy: soundness, retries, hedges, and what its breaker learns."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any, TypeVar

import numpy as np

from deployments import breaker, hedge
from deployments.breaker import Breaker, State
from deployments.hedge import Hedge
from orchestrator.config.serving import MemberOptions
from orchestrator.errors import MemberFailedError, OrchestratorError, OverloadedError

Call = Callable[[np.ndarray], Awaitable[np.ndarray]]
"""Asks a member: rows [n, ...] in, outputs [n, K] out; raises an `OrchestratorError`; may be cancelled."""
Problem = Callable[[np.ndarray, int], str | None]
"""What is wrong with a member's output to so many rows, or None."""
LATE = "no answer in time"

logger = logging.getLogger(__name__)
T = TypeVar("T")


class MemberCall:
    """A `Call` that can be trusted further than the one it wraps: what it returns is sound.

    Args:
        call: asks the member.
        problem: what is wrong with an output.
        options: the policy.
        replicas: a second call while the first runs needs two.
        clock: seconds, rising.
    """

    def __init__(
        self,
        call: Call,
        problem: Problem,
        options: MemberOptions,
        *,
        replicas: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._call = call
        self._problem = problem
        self._options = options
        self._clock = clock
        self._breaker = Breaker()
        self._hedge = Hedge() if options.hedge > 0 and replicas > 1 else None

    async def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Sound outputs [n, K] for rows [n, ...].

        Raises:
            OverloadedError: the member has too much to do; it is not asked again.
            MemberFailedError: no sound answer, after the retries.
        """
        for left in reversed(range(self._options.retries + 1)):
            try:
                return await self._once(rows)
            except OverloadedError:
                raise
            except OrchestratorError:
                if not left or self.state != "closed":
                    raise
        raise AssertionError("unreachable")

    @property
    def state(self) -> State:
        """Of the breaker."""
        return self._breaker.state

    def was_late(self) -> None:
        """A call was given up, since the request had no more time for it."""
        self._failed()

    def to_try(self) -> bool:
        """Whether the breaker's pause is over; then `attempt` is due."""
        settings = self._options.breaker
        return settings is not None and breaker.to_try(self._breaker, settings, self._clock())

    def attempt(self, rows: np.ndarray, limit_s: float) -> Coroutine[Any, Any, None]:
        """One call that tries whether the member works again; nobody waits for its answer.

        From now on, not from when it starts, no other is due.
        """
        self._breaker = breaker.trying(self._breaker)
        return self._attempt(rows, limit_s)

    async def _attempt(self, rows: np.ndarray, limit_s: float) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await self._once(rows)
        except TimeoutError:
            self.was_late()
        except OrchestratorError:
            pass  # the breaker knows
        except asyncio.CancelledError:
            self._failed()
            raise

    async def _once(self, rows: np.ndarray) -> np.ndarray:
        started = self._clock()
        try:
            async with asyncio.timeout(self._options.timeout_s) as limit:
                output = await self._hedged(rows)
        except Exception as error:
            self._failed()
            if isinstance(error, OrchestratorError):
                raise
            if isinstance(error, TimeoutError) and limit.expired():
                raise MemberFailedError(LATE) from error
            logger.exception("a member's call failed with an error that is not ours")
            raise MemberFailedError("the call failed", type(error).__name__) from error
        if self._options.breaker is not None:
            self._breaker = breaker.succeeded(self._breaker, self._options.breaker)
        if self._hedge is not None:
            self._hedge = hedge.answered(self._hedge, self._clock() - started, self._options.hedge)
        return output

    async def _hedged(self, rows: np.ndarray) -> np.ndarray:
        """The first call's answer, or that of a second one that overtakes it; the loser is cancelled."""
        if self._hedge is None or self._hedge.tail_s is None:
            return await self._sound(rows)
        waiting = {asyncio.ensure_future(self._sound(rows))}
        started = waiting.copy()
        try:
            done, _ = await asyncio.wait(waiting, timeout=self._hedge.tail_s)
            if not done and (left := hedge.spent(self._hedge)) is not None:
                self._hedge = left
                waiting.add(asyncio.ensure_future(self._sound(rows)))
                started |= waiting
            while True:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                good = [task for task in done if not task.cancelled() and task.exception() is None]
                if good or not waiting:
                    return (good or list(done))[0].result()
        finally:
            await stop(started)

    async def _sound(self, rows: np.ndarray) -> np.ndarray:
        output = await self._call(rows)
        if (problem := self._problem(output, len(rows))) is not None:
            raise MemberFailedError(problem)
        return output

    def _failed(self) -> None:
        if self._options.breaker is not None:
            self._breaker = breaker.failed(self._breaker, self._options.breaker, self._clock())


async def stop(tasks: Collection[asyncio.Future[T]]) -> list[T | BaseException]:
    """Cancel what is not done; results and exceptions of all."""
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)
