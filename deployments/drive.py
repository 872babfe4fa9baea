"""Drives the ensemble walk with awaited calls: fan-out, deadline and cancellation, written once.

What to ask and how to combine is `orchestrator.ensemble.tree.walk`'s; what a call is (a Serve handle, a
function in a test) is the caller's. The composed deployments share `Composed`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.exchange import Answer, Question
from deployments.observe.members import note_walk, watched_members
from deployments.observe.meter import Meter, Snapshot
from deployments.observe.replicas import gather, this_replica
from orchestrator.config.ensemble import Cascade, Member, Node, Spec, children
from orchestrator.config.signature import Task
from orchestrator.ensemble.expect import has_quorum
from orchestrator.ensemble.node import Ask
from orchestrator.ensemble.quorum import answers_without
from orchestrator.ensemble.tree import Outcome, Prediction, distinct, walk
from orchestrator.errors import DeadlineError, MemberFailedError, OrchestratorError, last_line

Call = Callable[[np.ndarray], Awaitable[np.ndarray]]
"""Asks a member: rows [n, ...] in, outputs [n, K] out; raises an `OrchestratorError`; may be cancelled."""

T = TypeVar("T")

READY_S = 5.0
"""A part that does not say within this time that it is ready is not."""
PATIENCE = 0.8
"""Share of the time for an answer that members with a quorum are waited for; the rest is for answering."""


async def drive(
    spec: Spec,
    calls: Mapping[Member, Call],
    inputs: np.ndarray,
    timeout_s: float,
    rounds: Callable[[float], None] = lambda _: None,
) -> Prediction:
    """Answer `inputs` [N, ...] with the spec's tree; members that can be asked together are.

    If some node has a quorum, a member that hangs must leave time for an answer without it. Members are then
    waited for until `PATIENCE` of `timeout_s` is over; of what is left of that, each round of asks gets an
    equal share with those that may follow it. Who has not answered by then is missing.

    Whatever is still running when the answer is known, the time is over, or the caller is cancelled, is
    cancelled. `rounds` is told the seconds of each round.

    Raises:
        DeadlineError: the members took longer than `timeout_s`.
        QuorumError: too few members gave a sound answer; those that did not are named.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _drive(spec, calls, inputs, timeout_s, rounds)
    except TimeoutError as error:
        raise DeadlineError("the members did not answer in time", f"{timeout_s:g} s") from error


async def _drive(
    spec: Spec,
    calls: Mapping[Member, Call],
    inputs: np.ndarray,
    timeout_s: float,
    rounds: Callable[[float], None],
) -> Prediction:
    task: Task = spec.signature.task
    steps = walk(spec.tree, len(inputs), task)
    asks = next(steps)
    now = asyncio.get_running_loop().time
    until = now() + PATIENCE * timeout_s if has_quorum(spec.tree) else None
    left = _rounds(spec.tree)
    while True:
        limit_s = None if until is None else (until - now()) / left
        left -= 1
        started = now()
        outcomes = await _ask_all(asks, calls, inputs, limit_s)
        rounds(now() - started)
        try:
            asks = steps.send(outcomes)
        except StopIteration as done:
            prediction: Prediction = done.value
            return prediction


def _rounds(node: Node) -> int:
    """Most rounds of asks that a walk has: the stages of a cascade one after the other, members together."""
    below = [_rounds(child) for child in children(node)]
    return sum(below) if isinstance(node, Cascade) else max(below, default=1)


async def _ask_all(
    asks: Sequence[Ask], calls: Mapping[Member, Call], inputs: np.ndarray, limit_s: float | None
) -> tuple[Outcome, ...]:
    """One outcome for each ask. All are waited for until `limit_s` is over; without one, the first failure
    ends the wait for the rest."""
    patient = limit_s is not None
    results = await settle([_ask(ask, calls, inputs) for ask in asks], limit_s, patient=patient)
    cut_off = "no answer in time" if patient else "not waited for, since another failed"
    return tuple(_outcome(result, cut_off) for result in results)


async def _ask(ask: Ask, calls: Mapping[Member, Call], inputs: np.ndarray) -> np.ndarray:
    everything = len(ask.rows) == len(inputs)
    return await calls[ask.member](inputs if everything else inputs[ask.rows])


def _outcome(result: np.ndarray | BaseException, cut_off: str) -> Outcome:
    if isinstance(result, np.ndarray):
        return Outcome(output=result)
    if isinstance(result, asyncio.CancelledError):
        return Outcome(failure=cut_off)
    if isinstance(result, OrchestratorError):
        return Outcome(failure=str(result))
    raise result


async def fetch(response: Any) -> Any:
    """Await a Serve call (a `DeploymentResponse`); cancelling this cancels the remote work too.

    Raises:
        OrchestratorError: the replica's own, or `MemberFailedError` when Ray could not run the call.
    """
    try:
        return await response
    except asyncio.CancelledError:
        # Serve leaves an accepted call running when only its awaiting is cancelled.
        response.cancel()
        raise
    except RayTaskError as error:
        if isinstance(error.cause, OrchestratorError):
            raise error.cause from error
        raise MemberFailedError("a replica failed", last_line(error)) from error
    except (RayError, RayServeException) as error:
        raise MemberFailedError("a replica could not be reached", last_line(error)) from error


def _call(handle: DeploymentHandle[Any]) -> Call:
    async def call(rows: np.ndarray) -> np.ndarray:
        outputs: np.ndarray = await fetch(handle.predict.remote(rows))
        return outputs

    return call


async def _ready(name: str, handle: DeploymentHandle[Any]) -> None:
    try:
        await fetch(handle.ready.remote())
    except OrchestratorError as error:
        raise MemberFailedError(f"member {name} is not ready", error) from error


class Composed:
    """A served ensemble whose members are deployments of their own.

    Args:
        spec: the fitted ensemble.
        handles: one for each distinct member of the tree, in file order.
        meter: counts what happens; one of its own when not given.
    """

    def __init__(
        self, spec: Spec, handles: Sequence[DeploymentHandle[Any]], *, meter: Meter | None = None
    ) -> None:
        self._spec = spec
        self._handles = tuple(handles)
        self._meter = meter or Meter(this_replica())
        asked = zip(distinct(spec.tree), self._handles, strict=True)
        calls = {member: _call(handle) for member, handle in asked}
        self._calls = watched_members(spec.name, calls, self._meter)

    async def predict(self, question: Question) -> Answer:
        """Answer the rows within the time that is left.

        Raises:
            DeadlineError: the members took longer.
            QuorumError: too few members gave a sound answer; those that did not are named.
        """
        rounds: list[float] = []
        prediction = await drive(self._spec, self._calls, question.rows, question.timeout_s, rounds.append)
        note_walk(self._spec.name, prediction, rounds, self._meter)
        return answer(prediction, self._spec)

    async def snapshots(self) -> list[Snapshot]:
        """What this replica and its members' counted."""
        return [self._meter.snapshot(), *await gather(self._handles)]

    async def ready(self) -> None:
        """Returns when so many members have loaded their artifacts and can be reached that the tree can
        answer; without a quorum, when all have.

        Raises:
            MemberFailedError: one could not be reached that the tree cannot do without.
        """
        asked = zip(self._calls, self._handles, strict=True)
        tasks = {asyncio.ensure_future(_ready(member.name, handle)): member for member, handle in asked}
        waiting = set(tasks)
        missing, failed = set(self._calls), set[Member]()
        try:
            async with asyncio.timeout(READY_S):
                while not answers_without(self._spec.tree, missing):
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    failed |= {tasks[task] for task in done if task.exception() is not None}
                    missing -= {tasks[task] for task in done} - failed
                    if not answers_without(self._spec.tree, failed):
                        await asyncio.gather(*done)
        except TimeoutError as error:
            raise MemberFailedError("not ready within", f"{READY_S:g} s") from error
        finally:
            await _stop(tasks)


async def everyone(waits: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; the first failure cancels the others and is raised.

    Raises:
        OrchestratorError: the first failure.
        MemberFailedError: they took longer than `READY_S`.
    """
    results = await settle(waits, timeout_s=READY_S)
    for result in results:
        if isinstance(result, Exception):
            raise result
    if any(isinstance(result, BaseException) for result in results):
        raise MemberFailedError("not ready within", f"{READY_S:g} s")


async def settle(
    waits: Sequence[Coroutine[Any, Any, T]], timeout_s: float | None = None, *, patient: bool = False
) -> list[T | BaseException]:
    """Run all side by side until they are done, the time is over, or (unless `patient`) one fails; then
    cancel the rest.

    Returns:
        Results and exceptions in the order of `waits`; `CancelledError` for what was cut off.
    """
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        until = asyncio.ALL_COMPLETED if patient else asyncio.FIRST_EXCEPTION
        await asyncio.wait(tasks, timeout=timeout_s, return_when=until)
    finally:
        results = await _stop(tasks)
    return results


async def _stop(tasks: Collection[asyncio.Future[T]]) -> list[T | BaseException]:
    """Cancel what is not done; results and exceptions of all."""
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


def answer(prediction: Prediction, spec: Spec) -> Answer:
    """A prediction as the protocol's outputs (see `protocol.describe`)."""
    if prediction.probs is None:
        outputs = {"values": prediction.outputs}
    else:
        outputs = {
            "probabilities": prediction.probs,
            "label": prediction.probs.argmax(axis=1).astype(np.int64),
        }
    used = tuple(member.name for member, rows in prediction.members.items() if rows.any())
    return Answer(outputs, used, spec.weight_epoch, degraded=bool(prediction.degraded.any()))
