"""What a body may be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from deployments.front import maybe_threaded
from deployments.http.asgi import DisconnectedError, Headers, Receive, header_text
from deployments.http.encoding import decompress
from deployments.http.errors import SlowBodyError
from deployments.protocol.errors import TooLargeError


async def read_body(
    headers: Headers, receive: Receive, limit: int, take: Callable[[int], None] = lambda _size: None
) -> bytes:
    """The body, decompressed; refused as soon as it is longer than `limit` bytes.

    Args:
        headers: of the request.
        receive: its parts.
        limit: in bytes.
        take: told the bytes of each part; may refuse it.

    Raises:
        TooLargeError: it is longer, or would be.
        ProtocolError: it is compressed in an unknown way, or damaged.
        DisconnectedError: the client is gone.
    """
    stated = headers.get(b"content-length", b"0")
    if stated.isdigit() and len(stated) < 20 and int(stated) > limit:
        raise TooLargeError(f"the body may have at most {limit} bytes", stated.decode())
    body = await _parts(receive, limit, take)
    encoding = header_text(headers, b"content-encoding")
    if encoding is None or encoding == "identity":
        return body
    # A small body may become a large one.
    plain = await maybe_threaded(True, decompress, body, encoding, limit)
    take(len(plain))
    return plain


async def read_in_time(
    headers: Headers,
    receive: Receive,
    limit: int,
    longest_s: float,
    take: Callable[[int], None] = lambda _size: None,
) -> bytes:
    """As `read_body`.

    Raises:
        SlowBodyError: it takes longer than `longest_s`.
    """
    try:
        async with asyncio.timeout(longest_s):
            return await read_body(headers, receive, limit, take)
    except TimeoutError as error:
        raise SlowBodyError("the body did not arrive in time") from error


async def _parts(receive: Receive, limit: int, take: Callable[[int], None]) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise TooLargeError(f"the body may have at most {limit} bytes")
        take(len(part))
        if not message.get("more_body", False) and not parts:
            return part
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)
