"""Open-loop load over HTTP: requests are sent when they are due, whether or not others were answered.

A client that waits for each reply sends less as the server slows down, and so hides the wait. Here arrivals
are a Poisson process, and a latency counts from the moment when the request was due.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")


async def poisson(
    send: Callable[[int], Awaitable[T]], rate_per_s: float, seconds: float, seed: int = 0
) -> list[tuple[T, float]]:
    """Call `send(number)` at Poisson times; its results and the seconds from when each was due."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate_per_s, int(2 * rate_per_s * seconds) + 10))
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def one(number: int, due: float) -> tuple[T, float]:
        found = await send(number)
        return found, loop.time() - due

    tasks = []
    for number, after in enumerate(times[times < seconds].tolist()):
        await asyncio.sleep(start + after - loop.time())
        tasks.append(asyncio.ensure_future(one(number, start + after)))
    return list(await asyncio.gather(*tasks))


@dataclass(frozen=True)
class Response:
    """Of an HTTP request; status 0 where there was none."""

    status: int
    body: bytes = b""


class Client:
    """Posts over connections that are kept open, as many as are needed at once."""

    def __init__(self, host: str, port: int, path: str, timeout_s: float) -> None:
        self._address = (host, port)
        self._path = path
        self._timeout_s = timeout_s
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, body: bytes) -> Response:
        """The response; a connection that breaks or is silent for too long is status 0, never a retry."""
        head = (
            f"POST {self._path} HTTP/1.1\r\nHost: {self._address[0]}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                reader, writer = self._kept() or await asyncio.open_connection(*self._address)
                try:
                    writer.write(head.encode() + body)
                    found = await _response(reader)
                except BaseException:
                    writer.close()
                    raise
        except (OSError, EOFError, ValueError, TimeoutError):
            return Response(0)
        self._idle.append((reader, writer))
        return found

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """An idle connection that the server has not closed meanwhile."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    async def close(self) -> None:
        """Close the idle connections."""
        for _, writer in self._idle:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _response(reader: asyncio.StreamReader) -> Response:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    length = next(int(line.split(":")[1]) for line in head if line.startswith("content-length:"))
    return Response(int(head[0].split()[1]), await reader.readexactly(length))
