"""The protocol over HTTP as an ASGI application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from deployments.exchange import Served
from deployments.front import LARGE_BYTES, Front, maybe_threaded
from deployments.http import encoding
from deployments.http.asgi import (
    DisconnectedError,
    EventStream,
    Headers,
    Receive,
    Reply,
    Scope,
    Send,
    header_text,
    headers_of,
    path_of,
    send_events,
    send_reply,
)
from deployments.http.endpoints import Endpoints
from deployments.http.errors import INTERNAL, refusal, status_of
from deployments.http.infer import infer
from deployments.http.routes import Call, Handler, Routes
from orchestrator.config.serving import ServingSettings
from orchestrator.errors import OrchestratorError, OverloadedError

ADMIN = "/admin/models"
"""Among `more`: releases can be changed."""

logger = logging.getLogger(__name__)


class Companion(Protocol):
    """Another server over the same models."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            ServingError: it has stopped by itself.
        """


class HttpApp:
    """An ASGI application over the models of a front.

    Args:
        front: the models.
        beside: what starts and stops with the application.
        more: routes beside those of the models.
    """

    def __init__(
        self,
        front: Front,
        beside: Sequence[Companion] = (),
        more: Mapping[str, Mapping[str, Handler]] = MappingProxyType({}),
    ) -> None:
        self._front = front
        self._beside = beside
        self._routes = Routes({**more, **Endpoints(front, releases=ADMIN in more).table()})
        # The paths of inference are looked up at once: all the load goes there. Versions come and go.
        self._infer = {f"/v2/models/{name}/infer": name for name in front.entries}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _live(self, receive: Receive, send: Send) -> None:
        """https://asgi.readthedocs.io/en/latest/specs/lifespan.html"""
        await receive()
        started: list[Companion] = []
        try:
            for companion in self._beside:
                await companion.start()
                started.append(companion)
        except OrchestratorError as error:
            await _stopped(started)
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await _stopped(started)
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = headers_of(scope)
        method = scope["method"]
        reply: Reply | EventStream
        try:
            reply = await self._reply(scope, headers, receive)
        except OrchestratorError as error:
            status = status_of(error)
            if status == 500:
                logger.error("a request failed: %s", error)
            # What went wrong inside is for the log.
            wait_s = error.retry_after_s if isinstance(error, OverloadedError) else None
            reply = refusal(status, str(error) if status != 500 else INTERNAL, wait_s)
        except DisconnectedError:
            reply = Reply(b"", 499)  # nobody reads it; the status is for the access log
        except Exception:
            logger.exception("a request failed by a defect")
            reply = refusal(500, INTERNAL)
        if isinstance(reply, EventStream):
            await send_events(send, reply)
            return
        if len(reply.body) >= encoding.LEAST_BYTES:
            reply = await _compressed(reply, headers)
        await send_reply(send, reply, with_body=method != "HEAD")

    async def _reply(self, scope: Scope, headers: Headers, receive: Receive) -> Reply | EventStream:
        method, path = scope["method"], path_of(scope)
        name = self._infer.get(path)
        if name is not None and method == "POST":
            return await infer(self._front, self._front.entries[name], headers, receive)
        found = self._routes.find(method, path)
        if isinstance(found, Reply):
            return found
        handler, names = found
        query = scope.get("query_string", b"").decode("latin-1")
        return await handler(Call(headers, receive, names, query))


def http_app(served: Sequence[Served], serving: ServingSettings) -> HttpApp:
    """The protocol as an ASGI application over models that can be asked."""
    return HttpApp(Front(served, serving))


async def _stopped(started: Sequence[Companion]) -> None:
    """Stop all at once, so that each has the whole time for its requests in work."""
    results = await asyncio.gather(*(one.stop() for one in started), return_exceptions=True)
    for error in results:
        if error is not None:
            logger.error("a server did not stop as it should", exc_info=error)


async def _compressed(reply: Reply, headers: Headers) -> Reply:
    wanted = encoding.accepted(header_text(headers, b"accept-encoding"))
    if wanted is None:
        return reply
    return await maybe_threaded(len(reply.body) >= LARGE_BYTES, encoding.compress, reply, wanted)
