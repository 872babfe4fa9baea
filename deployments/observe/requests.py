"""Each HTTP request from outside: its id, its count and time, and its line in the log."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.exchange import Answer, Question
from deployments.http.asgi import header_text, headers_of, path_of
from deployments.observe import families
from deployments.observe.meter import Meter
from orchestrator.errors import DeadlineError, OrchestratorError

REQUEST_ID = b"x-request-id"
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
    key: str = ""
    """Name of the key that it showed."""
    rows: int = 0
    answer: Answer | None = None

    def facts(self) -> dict[str, Any]:
        """For the log line: who asked, and what the answer says of itself."""
        found: dict[str, Any] = {"key": self.key} if self.key else {}
        if self.answer is not None:
            found |= {
                "rows": self.rows,
                "members": list(self.answer.members),
                "weight_epoch": self.answer.weight_epoch,
                "degraded": self.answer.degraded,
            }
        return found


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
        meter.watch(families.WORKING, value=lambda: self._working)
        self._known = {f"/v2/models/{model}/infer": (model, "infer") for model in models}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = Record(_request_id(header_text(headers_of(scope), REQUEST_ID)))

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                if self._echo:
                    message["headers"] = [*message["headers"], (REQUEST_ID, record.id.encode())]
            await send(message)

        token = CURRENT.set(record)
        started = time.perf_counter()
        self._working += 1
        try:
            await self._app(scope, receive, note)
        finally:
            CURRENT.reset(token)
            self._working -= 1
            self._ended(scope, record, time.perf_counter() - started)

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
                        **record.facts(),
                    }
                },
            )

    def _named(self, path: str) -> tuple[str, str]:
        """Model and endpoint of a path, as labels: only what is known becomes one."""
        if (known := self._known.get(path)) is not None:
            return known
        found = _MODEL_PATH.fullmatch(path)
        if found is None:
            return "", path if path in PLAIN else "other"
        model, rest = found["model"], found["rest"]
        return model if model in self._models else "", rest if rest in OF_A_MODEL else "other"


def watched(model: str, predict: Predict, meter: Meter, fair_s: float = 0.0) -> Predict:
    """The same call, ended when its time is over, with its outcome counted and noted for the log line.

    What is counted holds the timer: one around it would cancel the count together with the call, and of a
    client that is gone nothing is to be counted. Nor is it a failure not to answer a client that waits for
    less than `fair_s`.
    """

    async def asked(question: Question) -> Answer:
        record = CURRENT.get()
        if record is not None:
            record.model = model
            if not question.request_id:
                question = replace(question, request_id=record.id)
        try:
            answer = await _in_time(model, predict, question)
        except OrchestratorError as error:
            if not isinstance(error, DeadlineError) or question.timeout_s >= fair_s:
                meter.add(families.FAILURES, model, type(error).__name__)
            raise
        meter.add(families.ANSWERS, model)
        meter.add(families.DEGRADED, model, amount=float(answer.degraded))
        dropped = answer.outputs.get("rejected")
        if dropped is not None:
            meter.add(families.REJECTED, model, amount=float(dropped.sum()))
        meter.set(families.WEIGHT_EPOCH, model, to=answer.weight_epoch)
        if record is not None:
            record.rows, record.answer = len(question.rows), answer
        return answer

    return asked


async def _in_time(model: str, predict: Predict, question: Question) -> Answer:
    try:
        async with asyncio.timeout(question.timeout_s):
            return await predict(question)
    except TimeoutError as error:
        raise DeadlineError("no answer in time", model) from error


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
    return next(_ids)


def _random_ids() -> Iterator[str]:
    """128 random bits each: nobody may guess another's, since labels are accepted by id."""
    while True:
        digits = os.urandom(16 * 256).hex()  # a call of the kernel costs more than the bytes
        yield from (digits[start : start + 32] for start in range(0, len(digits), 32))


_ids = _random_ids()
