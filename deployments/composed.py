"""Ensembles whose members are Ray Serve deployments of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from ray.serve.handle import DeploymentHandle

from deployments import drive
from deployments.bundle import Bundler, answer_each
from deployments.contract import Contract
from deployments.drive import fetch
from deployments.exchange import Answer, Question
from deployments.loopback import listen_where_ray_does
from deployments.member import split
from deployments.member_call import Call, stop
from deployments.observe.members import note_health, note_walk, watched_members
from deployments.observe.meter import Meter, Snapshot
from deployments.observe.replicas import GATHER_S, gather, this_replica
from deployments.stream import InStages
from orchestrator.config.ensemble import Member, Spec
from orchestrator.config.serving import ServingSettings
from orchestrator.ensemble.quorum import answers_without
from orchestrator.ensemble.tree import Prediction, distinct
from orchestrator.errors import MemberFailedError, OrchestratorError


def _call(handle: DeploymentHandle[Any]) -> Call:
    async def call(rows: np.ndarray) -> np.ndarray:
        outputs: np.ndarray = await fetch(handle.predict.remote(rows))
        return outputs

    if not isinstance(handle, DeploymentHandle):
        return call  # a member of this process

    async def send(parts: list[np.ndarray]) -> Sequence[np.ndarray | OrchestratorError]:
        if len(parts) == 1:
            return [await call(parts[0])]
        sizes = [len(part) for part in parts]
        found = await fetch(handle.predict_many.remote(np.concatenate(parts), sizes))
        return split(found, sizes) if isinstance(found, np.ndarray) else found

    bundler: Bundler[np.ndarray, np.ndarray] = Bundler(send, lambda rows: rows.nbytes)
    return bundler.ask


async def _ready(name: str, handle: DeploymentHandle[Any]) -> None:
    try:
        await fetch(handle.ready.remote())
    except OrchestratorError as error:
        raise MemberFailedError(f"member {name} is not ready", error) from error


class Composed(InStages):
    """A served ensemble whose members are deployments of their own.

    Args:
        spec: the fitted ensemble.
        handles: one for each distinct member of the tree, in file order.
        serving: what a member's failure costs.
        here: members of this process.
        meter: counts what happens; one of its own when not given.
    """

    def __init__(
        self,
        spec: Spec,
        handles: Sequence[DeploymentHandle[Any]],
        serving: ServingSettings,
        *,
        here: Collection[Member] = (),
        meter: Meter | None = None,
    ) -> None:
        listen_where_ray_does()
        self._spec = spec
        self._handles = dict(zip(distinct(spec.tree), handles, strict=True))
        self._meter = meter or Meter(this_replica())
        calls = {member: _call(handle) for member, handle in self._handles.items()}
        watched = watched_members(spec.name, calls, self._meter)
        self._contract = Contract(spec, watched, serving, alone=here, saw=self._saw)

    async def predict(self, question: Question) -> Answer:
        """Answer the rows within the time that is left.

        Raises:
            DeadlineError: the members took longer.
            QuorumError: too few members gave a sound answer; those that did not are named.
        """
        return await self._contract.answer(question)

    async def predict_many(self, questions: Sequence[Question]) -> list[Answer | OrchestratorError]:
        """The answer to each question, or why there is none."""
        return await answer_each(self.predict, questions)

    async def snapshots(self) -> list[Snapshot]:
        """What this replica and its members' counted."""
        note_health(self._spec.name, self._contract.health(), self._meter)
        # Of the time that the ingress gives this replica: a member that hangs costs its own figures alone.
        return [self._meter.snapshot(), *await gather(self._handles.values(), GATHER_S / 2)]

    def _saw(self, prediction: Prediction, rounds: Sequence[float]) -> None:
        note_walk(self._spec.name, prediction, rounds, self._meter)

    def health(self) -> dict[str, Any]:
        """See `Contract.health`."""
        return self._contract.health()

    def check_health(self) -> None:
        """Called by Serve; the members' deployments answer for themselves."""

    async def close(self) -> None:
        """Stop what runs in the background; nobody may ask any more."""
        await self._contract.close()

    async def ready(self) -> None:
        """Returns when so many members have loaded their artifacts and can be reached that the tree can
        answer; without a quorum, when all have.

        Raises:
            MemberFailedError: one could not be reached that the tree cannot do without.
        """
        tasks = {
            asyncio.ensure_future(_ready(member.name, handle)): member
            for member, handle in self._handles.items()
        }
        waiting = set(tasks)
        missing, failed = set(self._handles), set[Member]()
        try:
            async with asyncio.timeout(drive.READY_S):
                while not answers_without(self._spec.tree, missing):
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    failed |= {tasks[task] for task in done if task.exception() is not None}
                    missing -= {tasks[task] for task in done} - failed
                    if not answers_without(self._spec.tree, failed):
                        await asyncio.gather(*done)
        except TimeoutError as error:
            raise MemberFailedError("not ready within", f"{drive.READY_S:g} s") from error
        finally:
            await stop(tasks)
