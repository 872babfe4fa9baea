"""Requests to the ASGI application in process, exactly as a server would hand them over."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deployments.http.app import HttpApp


@dataclass(frozen=True)
class Got:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def send(
    app: HttpApp,
    method: str,
    path: str,
    body: bytes | Sequence[bytes] = b"",
    headers: Mapping[str, str] | None = None,
    *,
    query: str = "",
    ends: bool = True,
) -> Got:
    """Send one request, its body in as many parts as it has; without an end the client goes away."""
    parts = [body] if isinstance(body, bytes) else list(body)
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": part, "more_body": not ends or part is not parts[-1]}
        for part in parts
    ]
    messages.append({"type": "http.disconnect"})
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def record(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "root_path": "",
        "query_string": query.encode("latin-1", "replace"),
        "headers": [
            (name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()
        ],
    }
    await app(scope, receive, record)
    start, *rest = sent
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return Got(start["status"], found, b"".join(message["body"] for message in rest))
