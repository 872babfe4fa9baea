"""Each HTTP request from outside: its id, its count and time, and its line in the log."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Collection
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.exchange import Answer, Question
from deployments.http.asgi import path_of
from deployments.observe import families
from deployments.observe.meter import Meter
from orchestrator.errors import OrchestratorError

REQUEST_ID = "x-request-id"
NO_REPLY = 499
"""Status of requests whose client went away before an answer began."""
LOGGER = "orchestrator.requests"

Predict = Callable[[Question], Awaitable[Answer]]


@dataclass
class Record:
    """What is known of a request while it is answered."""

    id: str
    status: int = NO_REPLY
    model: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    """For the log line: who asked, and what the answer says of itself."""


_MODEL_PATH = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/[^/]+)?/?(?P<rest>\w*)")
PLAIN = frozenset(
    ("/", "/status", "/metrics", "/predict", "/openapi.json", "/v2", "/v2/health/live", "/v2/health/ready")
)
OF_A_MODEL = frozenset(("", "infer", "predict", "ready", "config", "stats"))
"""Endpoints that have series of their own."""

CURRENT: ContextVar[Record | None] = ContextVar("request", default=None)
"""The request that this task answers."""


class Observed:
    """ASGI wrapper around all others, so that refusals are counted too.

    Args:
        app: what answers.
        meter: takes count and time.
        models: names of the served models; no other text of a client becomes a label.
        log: how a line is written for each request.
        echo: send the request's id back. Ray Serve's own HTTP server does that by itself.
    """

    def __init__(
        self,
        app: ASGIApp,
        meter: Meter,
        models: Collection[str],
        *,
        log: Literal["off", "text", "json"] = "off",
        echo: bool = True,
    ) -> None:
        self._app = app
        self._meter = meter
        self._models = frozenset(models)
        self._log = None if log == "off" else request_log(log)
        self._echo = echo
        self._working = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record(_request_id(Headers(scope=scope).get(REQUEST_ID)))

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                if self._echo:
                    MutableHeaders(scope=message)[REQUEST_ID] = record.id
            await send(message)

        token = CURRENT.set(record)
        started = time.perf_counter()
        self._count_working(1)
        try:
            await self._app(scope, receive, note)
        finally:
            CURRENT.reset(token)
            self._count_working(-1)
            self._ended(scope, record, time.perf_counter() - started)

    def _count_working(self, step: int) -> None:
        self._working += step
        self._meter.set(families.WORKING, to=self._working)

    def _ended(self, scope: Scope, record: Record, seconds: float) -> None:
        model, endpoint = self._named(path_of(scope))
        model = record.model or model
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other"
        self._meter.add(families.REQUESTS, model, endpoint, method, str(record.status))
        if model:
            self._meter.observe(families.REQUEST_SECONDS, model, endpoint, value=seconds)
        if self._log is not None:
            self._log.info(
                "%s %s",
                scope["method"],
                scope["path"][:200],
                extra={
                    "fields": {
                        "request_id": record.id,
                        "status": record.status,
                        "ms": round(seconds * 1e3, 3),
                        "model": model,
                        **record.facts,
                    }
                },
            )

    def _named(self, path: str) -> tuple[str, str]:
        """Model and endpoint of a path, as labels: only what is known becomes one."""
        found = _MODEL_PATH.fullmatch(path)
        if found is None:
            return "", path if path in PLAIN else "other"
        model, rest = found["model"], found["rest"]
        return model if model in self._models else "", rest if rest in OF_A_MODEL else "other"


def watched(model: str, predict: Predict, meter: Meter) -> Predict:
    """The same call with its outcome counted, and noted for the request's log line."""

    async def asked(question: Question) -> Answer:
        record = CURRENT.get()
        if record is not None:
            record.model = model
            question = replace(question, request_id=question.request_id or record.id)
        try:
            answer = await predict(question)
        except OrchestratorError as error:
            meter.add(families.FAILURES, model, type(error).__name__)
            raise
        meter.add(families.ANSWERS, model)
        meter.add(families.DEGRADED, model, amount=float(answer.degraded))
        dropped = answer.outputs.get("rejected")
        if dropped is not None:
            meter.add(families.REJECTED, model, amount=float(dropped.sum()))
        meter.set(families.WEIGHT_EPOCH, model, to=answer.weight_epoch)
        if record is not None:
            record.facts |= {
                "rows": len(question.rows),
                "members": list(answer.members),
                "weight_epoch": answer.weight_epoch,
                "degraded": answer.degraded,
            }
        return answer

    return asked


def request_log(form: Literal["text", "json"]) -> logging.Logger:
    """The logger of requests: one line each on standard error, which Ray keeps among its session's logs."""
    logger = logging.getLogger(LOGGER)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines() if form == "json" else TextLines())
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger


class JsonLines(logging.Formatter):
    """A JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        head = {"time": f"{moment}.{int(record.msecs):03d}Z", "request": record.getMessage()}
        return json.dumps(head | record.__dict__["fields"])


class TextLines(logging.Formatter):
    """The same for people. Values are written as JSON, so that no client's text can begin a line."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = " ".join(f"{name}={json.dumps(value)}" for name, value in record.__dict__["fields"].items())
        return f"{self.formatTime(record)} {json.dumps(record.getMessage())} {pairs}"


def _request_id(given: str | None) -> str:
    if given is not None and re.fullmatch(r"[\x21-\x7e]{1,128}", given):
        return given
    return uuid.uuid4().hex
