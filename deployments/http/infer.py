"""The inference route, which all the load goes through: no more objects and awaits than it needs."""

from __future__ import annotations

from deployments.exchange import Answer
from deployments.front import Entry, Front
from deployments.http.asgi import JSON, Headers, Receive, Reply, header_text
from deployments.http.respond import respond
from deployments.protocol.request import Request
from deployments.protocol.rest import HEADER_LENGTH

_HEADER_LENGTH = HEADER_LENGTH.lower().encode()
_BINARY = (b"content-type", b"application/octet-stream")


async def infer(front: Front, entry: Entry, headers: Headers, receive: Receive, version: str = "") -> Reply:
    """Answer an inference request; by that version alone, if one is given.

    Raises:
        OrchestratorError: the request, or what became of it.
        DisconnectedError: the client is gone.
    """
    length = header_text(headers, _HEADER_LENGTH)

    def decode(body: bytes) -> Request:
        return entry.codec.decode(body, length)

    def encode(request: Request, answer: Answer) -> Reply:
        encoded = entry.codec.encode(request, answer.outputs, answer.facts(), answer.version)
        if encoded.header_length is None:
            return Reply(encoded.body, headers=(JSON,))
        return Reply(encoded.body, headers=(_BINARY, (_HEADER_LENGTH, b"%d" % encoded.header_length)))

    def holds_files(body: bytes) -> bool:
        # JSON may write its letters as \\u0042, too.
        known = length is not None and length.isascii() and length.isdigit() and len(length) < 12
        head = body[: int(length)] if known and length else body
        return b"BYTES" in head or b"\\u" in head

    return await respond(
        front,
        entry,
        headers,
        receive,
        decode,
        encode,
        large_bytes=entry.large_bytes,
        takes_long=holds_files if entry.takes_files else None,
        version=version,
    )
