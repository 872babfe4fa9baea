"""Members as their ensemble sees them: each call timed, counted, and a span of the request's trace.

Spans go to whatever exporter the process has (docs/serving.md says how Ray Serve is told); with none they
are OpenTelemetry's no-ops.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
from opentelemetry import trace

from deployments.breaker import State
from deployments.observe import families
from deployments.observe.meter import Meter
from orchestrator.config.ensemble import Member
from orchestrator.ensemble.tree import Prediction
from orchestrator.errors import OrchestratorError

Call = Callable[[np.ndarray], Awaitable[np.ndarray]]

BREAKER_STATES: Mapping[State, int] = {"closed": 0, "half-open": 1, "open": 2}

_tracer = trace.get_tracer("orchestrator")


def watched_member(model: str, member: str, call: Call, meter: Meter) -> Call:
    """The same call; its time and outcome are noted. One that is cut off counts as failed, too."""

    async def asked(rows: np.ndarray) -> np.ndarray:
        started = time.perf_counter()
        attributes: dict[str, str | int] = {"orchestrator.model": model, "orchestrator.rows": len(rows)}
        with _tracer.start_as_current_span(f"member {member}", attributes=attributes):
            try:
                outputs = await call(rows)
            except (OrchestratorError, asyncio.CancelledError) as error:
                meter.add(families.MEMBER_FAILURES, model, member, type(error).__name__)
                raise
        meter.observe(families.MEMBER_SECONDS, model, member, value=time.perf_counter() - started)
        return outputs

    return asked


def watched_members(model: str, calls: Mapping[Member, Call], meter: Meter) -> dict[Member, Call]:
    """All calls of an ensemble, watched."""
    return {member: watched_member(model, member.name, call, meter) for member, call in calls.items()}


def note_walk(model: str, prediction: Prediction, rounds: Sequence[float], meter: Meter) -> None:
    """Count an answer's rows by the stage that they left at and the members that answered them, and the
    seconds of each round."""
    for member, answered in prediction.members.items():
        meter.add(families.MEMBER_ROWS, model, member.name, amount=float(np.count_nonzero(answered)))
    for number, seconds in enumerate(rounds):
        meter.observe(families.STAGE_SECONDS, model, str(number), value=seconds)
    for stage, rows in enumerate(np.bincount(prediction.stages)):
        if rows:
            meter.add(families.EXITS, model, str(stage), amount=float(rows))


def batches(meter: Meter, name: str) -> Callable[[int, float], None]:
    """What a batcher tells the rows and seconds of its calls."""

    def timed(rows: int, seconds: float) -> None:
        meter.observe(families.BATCH_ROWS, name, value=rows)
        meter.observe(families.COMPUTE_SECONDS, name, value=seconds)

    return timed


def note_health(model: str, health: Mapping[str, Any], meter: Meter) -> None:
    """Set what `Contract.health` says of an ensemble's members."""
    for member, found in health["members"].items():
        meter.set(families.BREAKER, model, member, to=BREAKER_STATES[found["breaker"]])
        if found["ejected"] and not meter.number(families.EJECTED, model, member):
            meter.add(families.EJECTIONS, model, member)
        meter.set(families.EJECTED, model, member, to=float(found["ejected"]))
    meter.set(families.EARLY_EXIT, model, to=float(health["early_exit"]))
