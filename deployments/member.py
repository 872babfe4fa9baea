"""A served member: one artifact in one execution, behind a batcher."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from deployments.batcher import Batcher
from deployments.bundle import answer_each
from deployments.loopback import listen_where_ray_does
from deployments.observe import families
from deployments.observe.members import batches
from deployments.observe.meter import Meter, Snapshot
from deployments.observe.replicas import this_replica
from deployments.worker import STUCK_S
from orchestrator.config import ensemble as tree
from orchestrator.errors import MemberFailedError, OrchestratorError
from orchestrator.runtime import execute
from orchestrator.runtime.allocator import keep_freed_memory
from orchestrator.store.store import Store


class Member:
    """Computes one artifact's outputs. One worker thread loads and runs it, so that the event loop stays free
    and the thread count, which PyTorch keeps by thread, holds for every call.

    Args:
        store: root of the store.
        member: the artifact and its execution.
        batch: most rows of one call of the model.
        threads: intra-op threads.
        max_queued_rows: most rows that may wait.
        allow: import paths that the model may be built from.
    """

    def __init__(
        self,
        store: str,
        member: tree.Member,
        *,
        batch: int,
        threads: int,
        max_queued_rows: int,
        allow: Collection[str] = (),
    ) -> None:
        listen_where_ray_does()
        keep_freed_memory()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"member-{member.name}")
        self._executable = self._worker.submit(
            lambda: execute.load(
                Store(store, create=False),
                member.digest,
                member.execution,
                threads=threads,
                batch=batch,
                allowed=allow,
            )
        ).result()
        self._meter = Meter(this_replica())
        timed = batches(self._meter, member.name)
        self._batcher = Batcher(self._run, max_rows=batch, max_queued=max_queued_rows, timed=timed)
        self._meter.watch(families.QUEUED_ROWS, member.name, value=lambda: self._batcher.queued)

    async def predict(self, rows: np.ndarray) -> np.ndarray:
        """Outputs [n, K] (logits or values) for rows [n, ...].

        Raises:
            OverloadedError: too many rows wait already.
            MemberFailedError: the model failed on these rows.
        """
        return await self._batcher.submit(rows)

    async def predict_many(
        self, rows: np.ndarray, sizes: Sequence[int]
    ) -> np.ndarray | list[np.ndarray | OrchestratorError]:
        """Outputs [n, K] for the rows [n, ...] of several callers, who have so many each; where the model
        failed on some, a list of each caller's outputs or error."""
        found = await answer_each(self.predict, split(rows, sizes))
        arrays = [outputs for outputs in found if isinstance(outputs, np.ndarray)]
        return np.concatenate(arrays) if len(arrays) == len(found) else found

    async def ready(self) -> None:
        """Can be called only once the artifact is loaded."""

    def snapshots(self) -> list[Snapshot]:
        """What this replica counted."""
        return [self._meter.snapshot()]

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            MemberFailedError: the worker hangs.
        """
        if self._batcher.busy_s > STUCK_S:
            raise MemberFailedError("a batch is still running after", f"{self._batcher.busy_s:.0f} s")

    async def _run(self, rows: np.ndarray) -> np.ndarray:
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._executable, rows)


def split(rows: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Consecutive parts of an array, of so many rows each."""
    return np.split(rows, np.cumsum(sizes)[:-1])
