"""One keep-alive HTTP/1.1 connection that sends prepared bytes: little work, so that a load generator beside
the server takes few of its cycles."""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass
from typing import cast

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """Where a request goes, and all of its bytes."""

    host: str
    port: int
    request: bytes
    tls: bool = False


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes


class Connection(asyncio.Protocol):
    """One request at a time; `open` makes one."""

    def __init__(self) -> None:
        self.usable = False
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._reply: asyncio.Future[Reply] | None = None

    @classmethod
    async def open(cls, target: Target) -> Connection:
        """Connect.

        Raises:
            OSError: nobody listens, or TLS failed.
        """
        tls = ssl.create_default_context() if target.tls else None
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, target.host, target.port, ssl=tls)
        return connection

    async def send(self, request: bytes) -> Reply:
        """Send a whole request and wait for its reply.

        Raises:
            ConnectionError: the server closed the connection, or its reply has no Content-Length.
        """
        if not self.usable or self._transport is None:
            raise ConnectionError("the connection is closed")
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._reply

    def close(self) -> None:
        """Close at once, whatever is still on its way."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast(asyncio.Transport, transport)
        self.usable = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self.usable = False
        self._fail(ConnectionError(f"the server closed the connection ({exc})"))

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end])
        length = _LENGTH.search(head)
        if length is None or not head.startswith(b"HTTP/1."):
            self.close()
            self._fail(ConnectionError("the reply has no Content-Length"))
            return
        start = end + 4
        whole = start + int(length[1])
        if len(self._received) < whole:
            return
        reply = Reply(int(head[9:12]), bytes(self._received[start:whole]))
        del self._received[:whole]
        if _CLOSE.search(head):
            self.close()
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(reply)

    def _fail(self, error: Exception) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)
