"""The little of ASGI that the routes need: https://asgi.readthedocs.io/en/latest/specs/www.html"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from deployments.protocol.rest import to_json

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]
Headers = Mapping[bytes, bytes]
"""Names in lower case."""

JSON = (b"content-type", b"application/json")
_HEADERS = "orchestrator.headers"
"""Key of a scope."""


class DisconnectedError(Exception):
    """The client is gone."""


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    body: bytes
    status: int = 200
    headers: tuple[Header, ...] = (JSON,)
    """All but its length."""


@dataclass(frozen=True)
class EventStream:
    """An answer in parts: server-sent events as they become known."""

    events: AsyncIterator[bytes]


def json_reply(value: object, status: int = 200, headers: tuple[Header, ...] = ()) -> Reply:
    """JSON."""
    return Reply(to_json(value), status, (JSON, *headers))


def path_of(scope: Scope) -> str:
    """The path within the application, wherever it is mounted: keys, routes and labels go by the same one."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path


def headers_of(scope: Scope) -> Headers:
    """The headers of a request; of several of one name the last counts. Made once for all who ask."""
    found: Headers | None = scope.get(_HEADERS)
    if found is None:
        found = scope[_HEADERS] = dict(scope["headers"])
    return found


def header_text(headers: Headers, name: bytes) -> str | None:
    """A header as text, if it was sent."""
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


async def send_reply(send: Send, reply: Reply, *, with_body: bool = True) -> None:
    """Send it, or, for HEAD, only its headers."""
    headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body if with_body else b""})


async def send_events(send: Send, stream: EventStream) -> None:
    """Send each event as it comes; what makes them ends with this."""
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
    events = stream.events
    try:
        # Asked before anything is sent: an iterator that was never asked has nothing that it could end.
        event = await anext(events, None)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while event is not None:
            await send({"type": "http.response.body", "body": event, "more_body": True})
            event = await anext(events, None)
        await send({"type": "http.response.body", "body": b""})
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()
