"""A whole ensemble in one process: requests that wait are one batch, one walk and, where it can be compiled,
one graph.

Rows are independent, so the walk over all rows of a batch gives each request the answer that it would get
alone. Nothing is sent anywhere; what is lost is isolation, since a crash takes all members with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from deployments.batcher import Batcher
from deployments.exchange import Answer, Question
from deployments.member import STUCK_S
from deployments.observe import families
from deployments.observe.members import batches, note_walk
from deployments.observe.meter import Meter, Snapshot
from deployments.observe.replicas import this_replica
from deployments.outputs import answer
from orchestrator.config.ensemble import Member, Spec
from orchestrator.ensemble.node import Ask
from orchestrator.ensemble.tree import Outcome, Prediction, asked_together, walk
from orchestrator.errors import DeadlineError, MemberFailedError
from orchestrator.runtime import joint
from orchestrator.runtime.joint import Joint
from orchestrator.store.store import Store


class Fused:
    """A served ensemble whose members all run here, on one worker thread.

    Args:
        spec: the fitted ensemble; every member must answer.
        store: root of the store.
        allow: import paths that members may be built from.
        compiled: members that are asked together become one compiled graph where that is possible.
        max_queued_rows: most rows that may wait.
    """

    def __init__(
        self, spec: Spec, store: str, *, allow: Collection[str], compiled: bool, max_queued_rows: int
    ) -> None:
        self._spec = spec
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"fused-{spec.name}")
        self._groups = load_groups(self._worker, spec, store, allow=allow, compiled=compiled)
        self._meter = Meter(f"{this_replica()}:{spec.name}")
        for group in self._groups:
            note_fallback(self._meter, group)
        timed = batches(self._meter, spec.name)
        self._batcher = Batcher(self._run, max_rows=spec.batch, max_queued=max_queued_rows, timed=timed)

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Why members that should be compiled run eagerly."""
        return tuple(group.fallback for group in self._groups if group.fallback is not None)

    async def predict(self, question: Question) -> Answer:
        """Answer the rows within the time that is left.

        Raises:
            OverloadedError: too many rows wait, or they will take longer than that.
            DeadlineError: the time is over.
            QuorumError: a member failed.
        """
        try:
            async with asyncio.timeout(question.timeout_s):
                prediction = await self._batcher.submit(question.rows, question.timeout_s)
        except TimeoutError as error:
            raise DeadlineError("the ensemble did not answer in time", f"{question.timeout_s:g} s") from error
        note_walk(self._spec.name, prediction, (), self._meter)
        return answer(prediction, self._spec, question.outputs)

    async def ready(self) -> None:
        """Can be called only once the members are loaded."""

    async def snapshots(self) -> list[Snapshot]:
        """What was counted of this ensemble."""
        self._meter.set(families.QUEUED_ROWS, self._spec.name, to=self._batcher.queued)
        return [self._meter.snapshot()]

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            MemberFailedError: the worker hangs.
        """
        if self._batcher.busy_s > STUCK_S:
            raise MemberFailedError("a batch is still running after", f"{self._batcher.busy_s:.0f} s")

    async def close(self) -> None:
        """Stop; nobody may ask any more."""
        await self._batcher.close()
        self._worker.shutdown(wait=False)

    async def _run(self, rows: np.ndarray) -> Prediction:
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._walk, rows)

    def _walk(self, inputs: np.ndarray) -> Prediction:
        steps = walk(self._spec.tree, len(inputs), self._spec.signature.task)
        asks = next(steps)
        while True:
            try:
                asks = steps.send(_answers(self._groups, asks, inputs))
            except StopIteration as done:
                prediction: Prediction = done.value
                return prediction


def load_groups(
    worker: ThreadPoolExecutor,
    spec: Spec,
    store: str,
    *,
    allow: Collection[str],
    compiled: bool,
    elsewhere: Collection[Member] = (),
) -> tuple[Joint, ...]:
    """The members of a spec but those `elsewhere`, each group that is asked together as one `Joint`.

    They are loaded by the thread that will run them, since PyTorch keeps the number of threads by thread.
    """

    def load() -> tuple[Joint, ...]:
        opened = Store(store, create=False)
        return tuple(
            joint.load(
                opened, group, threads=spec.threads, batch=spec.batch, allowed=allow, compiled=compiled
            )
            for whole in asked_together(spec.tree)
            if (group := [member for member in whole if member not in elsewhere])
        )

    return worker.submit(load).result()


def note_fallback(meter: Meter, group: Joint) -> None:
    """Say of each member of a group whether it runs eagerly because it could not be compiled."""
    for member in group.members:
        meter.set(families.FALLBACK, member.name, to=float(group.fallback is not None))


def _answers(groups: Sequence[Joint], asks: Sequence[Ask], inputs: np.ndarray) -> tuple[Outcome, ...]:
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
        found |= group(of_all.of(inputs))
    return tuple(_outcome(found[ask.member], ask, wanted[home[ask.member]].rows) for ask in asks)


def _outcome(found: np.ndarray | Exception, ask: Ask, rows: np.ndarray) -> Outcome:
    if isinstance(found, Exception):
        return Outcome(failure=f"{type(found).__name__}: {found}")
    return Outcome(output=found if len(ask.rows) == len(rows) else found[np.searchsorted(rows, ask.rows)])
