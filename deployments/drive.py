"""Drives the ensemble walk with awaited calls: fan-out, deadline and cancellation, written once.

What to ask and how to combine is `orchestrator.ensemble.tree.walk`'s; what a call is (a Serve handle, a
function in the same process) is the caller's. Whom to ask at all, and how often, is `deployments.contract`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.member_call import LATE, Call, stop
from orchestrator.config.ensemble import Cascade, Member, Node, Spec, children
from orchestrator.ensemble.expect import has_quorum
from orchestrator.ensemble.node import Ask
from orchestrator.ensemble.progress import Progress
from orchestrator.ensemble.tree import Outcome, Prediction, walk
from orchestrator.errors import DeadlineError, MemberFailedError, OrchestratorError, last_line

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
    *,
    without: Mapping[Member, str] = MappingProxyType({}),
    late: Callable[[Member], None] = lambda _: None,
    rounds: Callable[[float], None] = lambda _: None,
    told: Callable[[Prediction], None] | None = None,
) -> Prediction:
    """Answer `inputs` [N, ...] with the spec's tree; members that can be asked together are.

    If some node has a quorum, a member that hangs must leave time for an answer without it. Members are then
    waited for until `PATIENCE` of `timeout_s` is over; of what is left of that, each round of asks gets an
    equal share with those that may follow it. Who has not answered by then is missing.

    Whatever is still running when the answer is known, the time is over, or the caller is cancelled, is
    cancelled.

    Args:
        spec: the fitted ensemble.
        calls: one for each distinct member.
        inputs: rows.
        timeout_s: time for all of it.
        without: members that are not asked, and why; they count as missing.
        late: told of each member that was given up because the time was over.
        rounds: told the seconds of each round of asks.
        told: told what each stage of a cascade says while later ones are asked.

    Raises:
        DeadlineError: the members took longer than `timeout_s`.
        QuorumError: too few members gave a sound answer; those that did not are named.
    """
    steps = walk(spec.tree, len(inputs), spec.signature.task)
    asks = next(steps)
    now = asyncio.get_running_loop().time
    patient = has_quorum(spec.tree)
    until = now() + (PATIENCE if patient else 1.0) * timeout_s
    left = _rounds(spec.tree) if patient else 1
    progress = None if told is None else Progress(spec.tree, len(inputs), spec.signature.task, told)
    while True:
        asked = [ask for ask in asks if ask.member not in without]
        waits = [_ask(ask, calls, inputs) for ask in asked]
        started = now()
        results = await settle(waits, (until - started) / left, patient=patient)
        rounds(now() - started)
        left = max(left - 1, 1)
        outcomes = {member: Outcome(failure=reason) for member, reason in without.items()}
        outcomes |= _outcomes(asked, results, late)
        if not patient and any(isinstance(result, TimeoutError) for result in results):
            raise DeadlineError("the members did not answer in time", f"{timeout_s:g} s")
        before, said = asks, tuple(outcomes[ask.member] for ask in asks)
        try:
            asks = steps.send(said)
        except StopIteration as done:
            prediction: Prediction = done.value
            return prediction
        if progress is not None:
            progress.after(before, said)


def _rounds(node: Node) -> int:
    """Most rounds of asks that a walk has: the stages of a cascade one after the other, members together but
    for those who see others."""
    if isinstance(node, Member):
        return 1 + max(map(_rounds, node.sees), default=0)
    below = [_rounds(child) for child in children(node)]
    return sum(below) if isinstance(node, Cascade) else max(below, default=1)


async def _ask(ask: Ask, calls: Mapping[Member, Call], inputs: np.ndarray) -> np.ndarray:
    return await calls[ask.member](ask.of(inputs))


def _outcomes(
    asked: Sequence[Ask], results: Sequence[np.ndarray | BaseException], late: Callable[[Member], None]
) -> dict[Member, Outcome]:
    found = {}
    for ask, result in zip(asked, results, strict=True):
        if isinstance(result, TimeoutError):
            late(ask.member)
        found[ask.member] = _outcome(result)
    return found


def _outcome(result: np.ndarray | BaseException) -> Outcome:
    if isinstance(result, np.ndarray):
        return Outcome(output=result)
    if isinstance(result, TimeoutError):
        return Outcome(failure=LATE)
    if isinstance(result, asyncio.CancelledError):
        return Outcome(failure="not waited for, since another failed")
    if isinstance(result, OrchestratorError):
        return Outcome(failure=str(result))
    raise result


async def fetch(response: Any) -> Any:
    """Await a Serve call (a `DeploymentResponse`); cancelling this cancels the remote work too.

    Raises:
        OrchestratorError: the replica's own, or `MemberFailedError` when Ray could not run the call.
    """
    with _explained():
        try:
            return await response
        except asyncio.CancelledError:
            # Serve leaves an accepted call running when only its awaiting is cancelled.
            response.cancel()
            raise


async def fetch_stream(responses: Any) -> AsyncIterator[Any]:
    """What a Serve call with `stream=True` gives (a `DeploymentResponseGenerator`), cancelled with this.

    Raises:
        OrchestratorError: as of `fetch`.
    """
    with _explained():
        try:
            async for response in responses:
                yield response
        finally:
            responses.cancel()


async def fetch_all(handle: DeploymentHandle[Any], method: str, *args: Any, timeout_s: float) -> list[Any]:
    """Call a method on all replicas of a deployment.

    Raises:
        OrchestratorError: a replica's own, or `MemberFailedError` when one could not be reached in time.
    """
    with _explained():
        try:
            return list(await handle.broadcast(method, *args).results_async(timeout_s=timeout_s))
        except TimeoutError as error:
            raise MemberFailedError("not all replicas answered within", f"{timeout_s:g} s") from error


@contextmanager
def _explained() -> Iterator[None]:
    """Turn Ray's errors into ours."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, OrchestratorError):
            raise error.cause from error
        raise MemberFailedError("a replica failed", last_line(error)) from error
    except (RayError, RayServeException) as error:
        raise MemberFailedError("a replica could not be reached", last_line(error)) from error


async def everyone(waits: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; the first failure cancels the others and is raised.

    Raises:
        OrchestratorError: the first failure.
        MemberFailedError: they took longer than `READY_S`.
    """
    results = await settle(waits, timeout_s=READY_S)
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, TimeoutError):
            raise result
    if any(isinstance(result, BaseException) for result in results):
        raise MemberFailedError("not ready within", f"{READY_S:g} s")


async def settle(
    waits: Sequence[Coroutine[Any, Any, T]], timeout_s: float | None = None, *, patient: bool = False
) -> list[T | BaseException]:
    """Run all side by side until they are done, the time is over, or (unless `patient`) one fails; then
    cancel the rest.

    Returns:
        Results and exceptions in the order of `waits`. For what was cut off it is `TimeoutError` where the
        time was over, `CancelledError` where another failed.
    """
    if not waits:
        return []
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    until = asyncio.ALL_COMPLETED if patient else asyncio.FIRST_EXCEPTION
    try:
        done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=until)
    finally:
        results = await stop(tasks)
    over = patient or not any(task.cancelled() or task.exception() for task in done)
    return [
        TimeoutError() if over and task not in done and isinstance(result, asyncio.CancelledError) else result
        for task, result in zip(tasks, results, strict=True)
    ]
