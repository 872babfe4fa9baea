"""Members in the process of those who ask them, behind the interface of Serve's handles.

So the same code drives members that are deployments of their own and members that are not.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from deployments.batcher import Batcher
from deployments.pool import Pool
from deployments.worker import HangingError, Watch
from orchestrator.config.ensemble import Member
from orchestrator.errors import MemberFailedError, OrchestratorError
from orchestrator.runtime.joint import Joint

NEWS = 3
"""Failures of a member in a row that may be the rows' fault; one that goes on fails whatever it is asked."""


@dataclass(frozen=True)
class _Outputs:
    """What each member of a group gave for n rows."""

    rows: int
    found: dict[Member, np.ndarray | Exception]
    spoilt: bool = False
    """Rows of one request may have failed those of others."""

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, rows: slice) -> _Outputs:
        found = {
            member: output if isinstance(output, Exception) else output[rows]
            for member, output in self.found.items()
        }
        return _Outputs(rows.stop - rows.start, found)


@dataclass
class _Asked:
    """A computation that several members' callers wait for."""

    outputs: asyncio.Task[_Outputs]
    waiting: int = 0


class Group:
    """Members that are asked for the same rows at the same time: computed once for all of them, together with
    the rows of other requests.

    Args:
        pool: copies of the members of this process.
        place: of the group's own among them.
        hang_s: a call that begins no other piece of its rows for longer counts as failed for the members that
            it is in. A new thread computes the others. They are left alone until it returns, but where there
            are other copies this one is loaded anew for the calls that follow.
        longest_s: nobody waits longer for a call, so it ends.
        max_rows: most rows of one call.
        max_queued_rows: most rows that may wait.
        timed: see `Batcher`.
    """

    def __init__(
        self,
        pool: Pool[tuple[Joint, ...]],
        place: int,
        *,
        hang_s: float = math.inf,
        longest_s: float = math.inf,
        max_rows: int,
        max_queued_rows: int,
        timed: Callable[[int, float], None] = lambda _rows, _seconds: None,
    ) -> None:
        self._pool, self._place = pool, place
        self._hang_s, self._longest_s = hang_s, longest_s
        self._members = pool.loaded()[0][place].members
        self._batcher = Batcher(
            self._run,
            max_rows=max_rows,
            max_queued=max_queued_rows,
            at_once=len(pool),
            spoilt=lambda outputs: outputs.spoilt,
            timed=timed,
        )
        self._asked: dict[tuple[tuple[int, ...], bytes], _Asked] = {}
        self._failures = Counter[Member]()

    def handles(self) -> dict[Member, Handle]:
        """One for each member."""
        return {member: Handle(self, member) for member in self._members}

    @property
    def queued(self) -> int:
        """Rows that wait."""
        return self._batcher.queued

    async def ask(self, member: Member, rows: np.ndarray) -> np.ndarray:
        """Outputs [n, K] of one member for rows [n, ...].

        Raises:
            OverloadedError: too many rows wait already.
            MemberFailedError: it failed on these rows.
        """
        key = (rows.shape, rows.tobytes())
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = _Asked(asyncio.ensure_future(self._batcher.submit(rows)))
            asked.outputs.add_done_callback(lambda _: self._forget(key, asked))
        asked.waiting += 1
        try:
            # Another member's caller may wait for it, too.
            output = (await asyncio.shield(asked.outputs)).found[member]
        finally:
            asked.waiting -= 1
            if not asked.waiting:
                # Of no use to anyone if it still waits; nothing happens if it is done.
                asked.outputs.cancel()
                self._forget(key, asked)
        if isinstance(output, OrchestratorError):
            raise output
        if isinstance(output, Exception):
            raise MemberFailedError("computing a batch failed", f"{type(output).__name__}: {output}")
        return output

    def _forget(self, key: tuple[tuple[int, ...], bytes], asked: _Asked) -> None:
        if self._asked.get(key) is asked:
            del self._asked[key]

    async def close(self) -> None:
        """Stop; nobody may ask any more."""
        await self._batcher.close()

    async def _run(self, rows: np.ndarray) -> _Outputs:
        async with self._pool.lent() as copy:
            alone = len(self._pool) == 1
            # What hangs in one of several copies is not in it any more: it was loaded anew.
            without = copy.worker.hanging if alone else frozenset()
            hung = False
            try:
                while True:
                    watch = Watch(self._longest_s)
                    compute = partial(self._compute, rows=rows, watch=watch, without=without)
                    try:
                        found = await copy.run(compute, watch, self._hang_s)
                    except HangingError:
                        hung = True
                        if not watch.members:
                            raise
                        without |= set(watch.members)
                        continue  # the others, by a new thread
                    for member in self._members:
                        found.setdefault(member, HangingError("a call hangs", member.name))
                    return _Outputs(len(rows), found, self._is_news(found))
            finally:
                if hung and not alone:
                    copy.forget()

    def _compute(
        self, joints: Sequence[Joint], rows: np.ndarray, watch: Watch, without: Collection[Member]
    ) -> dict[Member, np.ndarray | Exception]:
        return joints[self._place](rows, watch.begin, without)

    def _is_news(self, found: Mapping[Member, np.ndarray | Exception]) -> bool:
        """Whether a member failed that did not always fail; a call that hangs would hang again."""
        news = False
        for member, output in found.items():
            if isinstance(output, HangingError):
                continue
            self._failures[member] = self._failures[member] + 1 if isinstance(output, Exception) else 0
            news |= 0 < self._failures[member] <= NEWS
        return news


class Handle:
    """One member of a group, called like a `DeploymentHandle`."""

    def __init__(self, group: Group, member: Member) -> None:
        async def predict(rows: np.ndarray) -> np.ndarray:
            return await group.ask(member, rows)

        async def ready() -> None:
            """Can be called only once the artifact is loaded."""

        self.predict, self.ready = Remote(predict), Remote(ready)


@dataclass(frozen=True)
class Remote:
    """A method of a `Handle`; what `remote` gives can be awaited and cancelled."""

    call: Callable[..., Awaitable[Any]]

    def remote(self, *args: Any) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self.call(*args))
