"""HTTP on a port of the ingress's own, past Ray Serve's proxies.

Between a proxy and the application Ray Serve makes tasks, queues and header objects for each request, which
costs several times what decoding, walking and encoding cost. Where the ingress is known to run on the machine
that is asked, it listens itself; replicas on one machine share the port (`SO_REUSEPORT`).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deployments.protocol.rest import to_json
from orchestrator.config.serving import ServingSettings
from orchestrator.errors import ServingError

BACKLOG = 2048
STOP_S = 5
"""Time that requests in work have when the server stops."""
HEAD_BYTES = 64 * 1024
"""Longest request line with headers, and longest trailers, give or take what one read of the socket gives."""
HEAD_S = 20.0
"""Time for a request line with headers to arrive."""


class Listener:
    """Serves an ASGI application; starts and stops with the ingress.

    Args:
        app: what answers.
        serving: host, port and TLS.
    """

    def __init__(self, app: ASGIApp, serving: ServingSettings) -> None:
        self._address = serving.host, serving.port
        tls = serving.tls
        self._server = _Server(
            uvicorn.Config(
                _cancellable(app),
                http=_Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=STOP_S,
                ssl_certfile=None if tls is None else tls.certificate,
                ssl_keyfile=None if tls is None else tls.key,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            ServingError: the port cannot be listened on, or the TLS files cannot be used.
        """
        try:
            self._server.config.load()
        except OSError as error:  # ssl.SSLError is one
            raise ServingError("the TLS files cannot be used", error.strerror) from error
        listening = _listen(*self._address)
        self._serving = asyncio.create_task(self._server.serve([listening]))

    async def stop(self) -> None:
        """Take no more connections; requests in work have `STOP_S`."""
        if self._serving is not None:
            self._server.should_exit = True
            await self._serving


class _Server(uvicorn.Server):
    """Leaves signals to Ray, whose process this is."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(HttpToolsProtocol):
    """uvicorn's, but headers end some time, and work for a client that is gone is cancelled."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._undelivered = 0
        """Bytes since the last end of a head or part of a body: the parser keeps them all."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._work: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()
        if self._work is not None:
            self._work.cancel()

    def data_received(self, data: bytes) -> None:
        self._undelivered += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._undelivered > HEAD_BYTES:
            self.send_400_response(f"headers may have at most {HEAD_BYTES} bytes")
        elif self._in_head and self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self.transport.close)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._in_head, self._undelivered = False, 0
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._undelivered = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._undelivered = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        body = to_json({"error": msg})
        head = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: application/json\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        # As in uvicorn, which does not keep whose task it is.
        self._work = self.loop.create_task(cycle.run_asgi(app))
        self._work.add_done_callback(self.tasks.discard)
        self.tasks.add(self._work)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _cancellable(app: ASGIApp) -> ASGIApp:
    """The application; uvicorn would log its cancellation as a defect."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    return call


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Every address of the machine are those of IPv4 too, as for gRPC.
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            (host, port), family=family, backlog=BACKLOG, reuse_port=True, dualstack_ipv6=both
        )
    except OSError as error:
        raise ServingError(
            f"cannot listen ({error.strerror})", f"{host}:{port}", "choose another port"
        ) from error
