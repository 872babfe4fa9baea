"""gzip and deflate, for bodies that come and go."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import replace

from deployments.http.asgi import Reply
from deployments.protocol.datatypes import short
from deployments.protocol.errors import ProtocolError, TooLargeError, UnsupportedEncodingError

WINDOW: Mapping[str, int] = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""What zlib calls them; `deflate` is zlib's own format (RFC 9110, 8.4.1.2)."""
LEAST_BYTES = 1024
"""Shorter replies fit a packet anyway."""
_REFUSED = re.compile(r"q=0(\.0*)?$")


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """A body as it was before it was compressed; never more than `limit` bytes are made of it.

    Raises:
        UnsupportedEncodingError: another way of compressing.
        TooLargeError: it is longer than `limit`.
        ProtocolError: it is damaged.
    """
    name = encoding.strip().lower()
    if name not in WINDOW:
        raise UnsupportedEncodingError(
            "the body's encoding is not supported", short(encoding), f"supported are {', '.join(WINDOW)}"
        )
    machine = zlib.decompressobj(WINDOW[name])
    try:
        plain = machine.decompress(body, limit + 1)
    except zlib.error as error:
        raise ProtocolError(f"the body is not {name}", error) from error
    if len(plain) > limit:
        raise TooLargeError(f"the body may have at most {limit} bytes when decompressed")
    if not machine.eof or machine.unused_data:
        raise ProtocolError(f"the {name} body is cut off or has something behind it")
    return plain


def accepted(header: str | None) -> str | None:
    """The way of compressing that a client wants, of those known here, if any."""
    for part in (header or "").lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() in WINDOW and not _REFUSED.search(weight.replace(" ", "")):
            return name.strip()
    return None


def compress(reply: Reply, encoding: str) -> Reply:
    """The reply, compressed."""
    machine = zlib.compressobj(1, wbits=WINDOW[encoding])
    body = machine.compress(reply.body) + machine.flush()
    headers = (*reply.headers, (b"content-encoding", encoding.encode()), (b"vary", b"accept-encoding"))
    return replace(reply, body=body, headers=headers)
