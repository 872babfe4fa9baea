"""Every metric family that is served, by name: what `monitoring/` and the page are drawn from.

Names and base units (seconds, rows) follow Prometheus's conventions. Labels take their values from specs and
routes, never from a client's text, so that the number of series is bounded.

https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SECONDS = (
    *(0.0002, 0.0003, 0.0005, 0.0007, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03),
    *(0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 5.0, 10.0, 30.0),
)
"""Upper bounds of latency buckets: close enough that a quantile read from them is right to a fifth."""
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)


@dataclass(frozen=True)
class Family:
    """One metric with its labels."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds, ascending; of a histogram."""


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family(f"orchestrator_{name}_total", "counter", text, labels)


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family(f"orchestrator_{name}", "gauge", text, labels)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Family:
    return Family(f"orchestrator_{name}", "histogram", text, labels, buckets)


REQUESTS = _counter(
    "requests", "HTTP requests; endpoint names the handler", "model", "endpoint", "method", "status"
)
REQUEST_SECONDS = _histogram(
    "request_seconds", "Whole HTTP requests that name a model", SECONDS, "model", "endpoint"
)
WORKING = _gauge("working_requests", "HTTP requests that are being answered now")
TASKS = _gauge("tasks", "Tasks of the ingress's event loop: more and more of them is a leak")
ANSWERS = _counter("answers", "Answered questions, whatever the protocol", "model")
DEGRADED = _counter("degraded_answers", "Answers made without a member that should have answered", "model")
REJECTED = _counter("rejected_rows", "Rows that the ensemble would rather not answer", "model")
FAILURES = _counter("failures", "Questions without an answer, by the kind of error", "model", "error")
WEIGHT_EPOCH = _gauge("weight_epoch", "Version of weights and thresholds of the last answer", "model")
STAGE_SECONDS = _histogram(
    "stage_seconds",
    "Rounds of asks, from 0: a cascade's stages, one round for other trees",
    SECONDS,
    "model",
    "stage",
)
EXITS = _counter("exit_rows", "Rows by the stage of the root cascade that answered them", "model", "stage")
EARLY_EXIT = _gauge(
    "early_exit", "0 once the audit of a cascade has switched early exits off, else 1", "model"
)
MEMBER_SECONDS = _histogram(
    "member_seconds", "Calls of a member as the ensemble waits for them", SECONDS, "model", "member"
)
MEMBER_ROWS = _counter("member_rows", "Rows that a member answered", "model", "member")
MEMBER_FAILURES = _counter(
    "member_failures", "Calls of a member without an answer, by the kind of error", "model", "member", "error"
)
BREAKER = _gauge(
    "breaker_state", "A member's circuit breaker: 0 closed, 1 half open, 2 open", "model", "member"
)
EJECTED = _gauge("ejected", "1 while a member is left out for answers that disagree", "model", "member")
EJECTIONS = _counter("ejections", "Times that a member was ejected", "model", "member")
BATCH_ROWS = _histogram(
    "batch_rows", "Rows of each call of a model, or of all that run fused", ROWS, "member"
)
COMPUTE_SECONDS = _histogram("compute_seconds", "Each call of a model, without waiting", SECONDS, "member")
QUEUED_ROWS = _gauge("queued_rows", "Rows that wait for a model", "member")
HANGING = _gauge("hanging_calls", "Calls of fused members that were given up and have not returned", "member")
FALLBACK = _gauge("fallback", "1 where a model runs eagerly because its compiled form could not", "member")

FAMILIES = (
    *(
        REQUESTS,
        REQUEST_SECONDS,
        WORKING,
        TASKS,
        ANSWERS,
        DEGRADED,
        REJECTED,
        FAILURES,
        WEIGHT_EPOCH,
        STAGE_SECONDS,
        EXITS,
        EARLY_EXIT,
    ),
    *(MEMBER_SECONDS, MEMBER_ROWS, MEMBER_FAILURES, BREAKER, EJECTED, EJECTIONS),
    *(BATCH_ROWS, COMPUTE_SECONDS, QUEUED_ROWS, HANGING, FALLBACK),
)
