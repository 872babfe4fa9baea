"""`POST /predict` with `Accept: text/event-stream`: the answer of each stage as a server-sent event.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from deployments.exchange import Answer
from deployments.http.asgi import EventStream, Headers, Reply, header_text
from deployments.http.errors import status_of, told_to_clients
from deployments.protocol.rest import to_json
from orchestrator.errors import OrchestratorError

EVENTS = "text/event-stream"
Told = Callable[[Answer], None]

logger = logging.getLogger(__name__)


def wanted(headers: Headers) -> bool:
    """Whether the client asks for events."""
    return EVENTS in (header_text(headers, b"accept") or "").lower()


async def events(
    respond: Callable[[Told], Awaitable[Reply]], encode: Callable[[Answer], dict[str, Any]]
) -> EventStream:
    """Events `stage`, as many as there are, then `answer`; or `error` where one came before.

    Args:
        respond: answers the request, and tells of each stage that later ones follow.
        encode: a stage's answer as JSON values.

    Raises:
        OrchestratorError: of `respond`, where nothing was known before.
    """
    known: asyncio.Queue[Answer | None] = asyncio.Queue()
    work = asyncio.ensure_future(respond(known.put_nowait))
    work.add_done_callback(lambda _: known.put_nowait(None))
    try:
        first = await known.get()
        if first is None:
            return EventStream(_only(await work))
    except BaseException:
        work.cancel()
        raise
    return EventStream(_all(first, known, work, encode))


async def _only(reply: Reply) -> AsyncIterator[bytes]:
    yield _event("answer", reply.body)


async def _all(
    first: Answer,
    known: asyncio.Queue[Answer | None],
    work: asyncio.Future[Reply],
    encode: Callable[[Answer], dict[str, Any]],
) -> AsyncIterator[bytes]:
    try:
        answer: Answer | None = first
        while answer is not None:
            yield _event("stage", to_json(encode(answer)))
            answer = await known.get()
        try:
            yield _event("answer", (await work).body)
        except OrchestratorError as error:
            yield _event("error", to_json({"error": told_to_clients(error), "status": status_of(error)}))
        except Exception as error:
            logger.exception("a request failed by a defect")
            yield _event("error", to_json({"error": told_to_clients(error), "status": 500}))
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


def _event(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
