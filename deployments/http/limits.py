"""What a body may be."""

from __future__ import annotations

from starlette.requests import Request as HttpRequest

from deployments.protocol.errors import TooLargeError, UnsupportedEncodingError


async def read_body(request: HttpRequest, limit: int) -> bytes:
    """The body, refused as soon as it is longer than `limit` bytes."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnsupportedEncodingError("compressed bodies are not supported", encoding[:80])
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and len(stated) < 20 and int(stated) > limit:
        raise TooLargeError(f"the body may have at most {limit} bytes", stated)
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise TooLargeError(f"the body may have at most {limit} bytes")
        parts.append(part)
    return b"".join(parts)
