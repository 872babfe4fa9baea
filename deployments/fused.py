"""A whole ensemble in one process: requests that wait are one batch, one walk and, where it can be compiled,
one graph.

Rows are independent, so the walk over all rows of a batch gives each request the answer that it would get
alone. Nothing is sent anywhere; what is lost is isolation, since a crash takes all members with it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Sequence
from functools import partial

import numpy as np

from deployments.batcher import Batcher
from deployments.exchange import Answer, Question
from deployments.observe import families
from deployments.observe.members import batches, note_walk
from deployments.observe.meter import Meter, Snapshot
from deployments.observe.replicas import this_replica
from deployments.outputs import Part, answer, shared
from deployments.pool import Pool
from deployments.protocol.model import describe
from deployments.worker import HangingError, Watch
from orchestrator.config.ensemble import Member, Spec
from orchestrator.ensemble.direct import direct
from orchestrator.ensemble.node import Ask
from orchestrator.ensemble.progress import Progress
from orchestrator.ensemble.tree import Outcome, Prediction, asked_together, walk
from orchestrator.errors import DeadlineError, MemberFailedError
from orchestrator.runtime import joint
from orchestrator.runtime.allocator import keep_freed_memory
from orchestrator.runtime.joint import Joint
from orchestrator.store.store import Store

Groups = tuple[Joint, ...]
"""Members that are asked together, each group as one."""


class Fused:
    """A served ensemble whose members all run here, each copy of them on a thread of its own.

    Args:
        spec: the fitted ensemble; every member must answer.
        store: root of the store.
        allow: import paths that members may be built from.
        compiled: members that are asked together become one compiled graph where that is possible.
        max_queued_rows: most rows that may wait.
        hang_s: nobody waits longer for a batch, so it ends; one that begins no other piece of its rows for as
            long hangs, and its members are loaded anew for those that follow.
        instances: copies of the members, so many batches are computed at once.
    """

    def __init__(
        self,
        spec: Spec,
        store: str,
        *,
        allow: Collection[str],
        compiled: bool,
        max_queued_rows: int,
        hang_s: float = math.inf,
        instances: int = 1,
    ) -> None:
        self._spec = spec
        keep_freed_memory()
        self._pool = Pool(
            f"fused-{spec.name}",
            partial(opened_groups, spec, store, allow=allow, compiled=compiled),
            instances,
        )
        self._hang_s = hang_s
        self._version = describe(spec).version
        self._direct = direct(spec.tree, spec.signature.task, spec.signature.outputs)
        self._meter = Meter(f"{this_replica()}:{spec.name}")
        note_fallbacks(self._meter, self._pool)
        self._batcher = Batcher(
            self._run,
            max_rows=spec.batch,
            max_queued=max_queued_rows,
            at_once=instances,
            timed=batches(self._meter, spec.name),
        )
        self._meter.watch(families.QUEUED_ROWS, spec.name, value=lambda: self._batcher.queued)
        self._meter.watch(families.HANGING, spec.name, value=lambda: self._pool.calls_that_hang)

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Why members that should be compiled run eagerly."""
        return fallbacks(self._pool)

    async def predict(self, question: Question) -> Answer:
        """Answer the rows within the time that is left.

        Raises:
            OverloadedError: too many rows wait, or they will take longer than that.
            DeadlineError: the time is over.
            QuorumError: a member failed.
        """
        told = None if self._direct is not None else question.told  # what is answered directly has no stages
        part = await (
            self._batcher.submit(question.rows, question.timeout_s)
            if told is None
            else self._in_stages(question, told)
        )
        return part.answer(self._spec, question.outputs)

    async def ready(self) -> None:
        """Can be called only once the members are loaded."""

    async def snapshots(self) -> list[Snapshot]:
        """What was counted of this ensemble."""
        return [self._meter.snapshot()]

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            MemberFailedError: calls hang.
        """
        self._pool.check_health()

    async def close(self) -> None:
        """Stop; nobody may ask any more."""
        await self._batcher.close()
        self._pool.close()

    async def _in_stages(self, question: Question, told: Callable[[Answer], None]) -> Part:
        """A walk of its own, whose stages are told."""
        loop = asyncio.get_running_loop()

        def tell(stage: Prediction) -> None:
            loop.call_soon_threadsafe(told, answer(stage, self._spec))

        watch = Watch(self._hang_s)
        # Not cancelled with who waits: what the thread computes occupies it until that ends.
        work = asyncio.ensure_future(self._run(question.rows, watch, tell))
        try:
            async with asyncio.timeout(question.timeout_s):
                return await asyncio.shield(work)
        except TimeoutError as error:
            raise DeadlineError("no answer in time", f"{question.timeout_s:g} s") from error
        finally:
            watch.give_up()

    async def _run(
        self, rows: np.ndarray, watch: Watch | None = None, told: Callable[[Prediction], None] | None = None
    ) -> Part:
        watch = watch or Watch(self._hang_s)
        async with self._pool.lent() as copy:
            compute = partial(self._compute, inputs=rows, watch=watch, told=told)
            try:
                part = await copy.run(compute, watch, self._hang_s)
            except HangingError:
                copy.forget()
                raise
        note_walk(self._spec.name, part.whole, (), self._meter)
        return part

    def _compute(
        self, groups: Groups, inputs: np.ndarray, watch: Watch, told: Callable[[Prediction], None] | None
    ) -> Part:
        """In the copy's thread. Where all is well, nothing has to be decided."""
        if self._direct is not None:
            (group,) = groups
            outputs = group.stacked(inputs, watch.begin)
            if watch.given_up:
                raise MemberFailedError("nobody waits any more")
            prediction = None if outputs is None else self._direct(outputs)
            if prediction is not None:
                return shared(prediction, self._spec, self._version)
        return shared(self._walk(groups, inputs, watch, told), self._spec, self._version)

    def _walk(
        self, groups: Groups, inputs: np.ndarray, watch: Watch, told: Callable[[Prediction], None] | None
    ) -> Prediction:
        steps = walk(self._spec.tree, len(inputs), self._spec.signature.task)
        asks = next(steps)
        progress = (
            None if told is None else Progress(self._spec.tree, len(inputs), self._spec.signature.task, told)
        )
        while True:
            asked, outcomes = asks, _answers(groups, asks, inputs, watch)
            try:
                asks = steps.send(outcomes)
            except StopIteration as done:
                prediction: Prediction = done.value
                return prediction
            if progress is not None:
                progress.after(asked, outcomes)


def opened_groups(
    spec: Spec,
    store: str,
    *,
    allow: Collection[str],
    compiled: bool,
    elsewhere: Collection[Member] = (),
) -> Groups:
    """The members of a spec but those `elsewhere`, each group that is asked together as one `Joint`."""
    opened = Store(store, create=False)
    return tuple(
        joint.load(opened, group, threads=spec.threads, batch=spec.batch, allowed=allow, compiled=compiled)
        for whole in asked_together(spec.tree)
        if (group := [member for member in whole if member not in elsewhere])
    )


def fallbacks(pool: Pool[Groups]) -> tuple[str, ...]:
    """Why members that should be compiled run eagerly, each reason once."""
    found = [group.fallback for groups in pool.loaded() for group in groups if group.fallback is not None]
    return tuple(dict.fromkeys(found))


def note_fallbacks(meter: Meter, pool: Pool[Groups]) -> None:
    """Say of each member whether it runs eagerly, in any copy, because it could not be compiled."""
    for same in zip(*pool.loaded(), strict=True):
        for member in same[0].members:
            meter.set(families.FALLBACK, member.name, to=float(any(one.fallback is not None for one in same)))


def _answers(
    groups: Sequence[Joint], asks: Sequence[Ask], inputs: np.ndarray, watch: Watch
) -> tuple[Outcome, ...]:
    """One outcome for each ask; a group is called once, for all rows that any of its members is asked for."""
    wanted: dict[Joint, Ask] = {}
    home = {member: group for group in groups for member in group.members}
    for ask in asks:
        group = home[ask.member]
        # A member that sees others has a group of its own.
        before = wanted.get(group)
        wanted[group] = ask if before is None else Ask(ask.member, np.union1d(before.rows, ask.rows))
    found: dict[Member, np.ndarray | Exception] = {}
    for group, of_all in wanted.items():
        found |= group(of_all.of(inputs), watch.begin)
    if watch.given_up:
        raise MemberFailedError("nobody waits any more")
    return tuple(_outcome(found[ask.member], ask, wanted[home[ask.member]].rows) for ask in asks)


def _outcome(found: np.ndarray | Exception, ask: Ask, rows: np.ndarray) -> Outcome:
    if isinstance(found, Exception):
        return Outcome(failure=f"{type(found).__name__}: {found}")
    return Outcome(output=found if len(ask.rows) == len(rows) else found[np.searchsorted(rows, ask.rows)])
