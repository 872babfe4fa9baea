"""HTTP on a port of the ingress's own, past Ray Serve's proxies.

Between a proxy and the application Ray Serve makes tasks, queues and header objects for each request, which
costs several times what decoding, walking and encoding cost. Where the ingress is known to run on the machine
that is asked, it listens itself; replicas on one machine share the port (`SO_REUSEPORT`).
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from deployments.port_lock import PortLock
from deployments.protocol.rest import to_json
from orchestrator.config.serving import ServingSettings
from orchestrator.errors import ServingError

BACKLOG = 2048
KEEP_ALIVE_S = 75
"""Time that an idle connection is kept, as usual servers do."""
IDLE_S = 1.0
"""Time for which a server that stops still answers on open connections before it closes them, so that no
request that is just being sent is cut off."""
HEAD_BYTES = 64 * 1024
"""Longest request line with headers, and longest trailers, give or take what one read of the socket gives."""
HEAD_S = 20.0
"""Time for a request line with headers to arrive."""
READ_S, READ_BYTES = 20.0, 64 * 1024
"""Time in which a client must read so many bytes of an answer that waits for it."""


class Listener:
    """Serves an ASGI application; starts and stops with the ingress.

    Args:
        app: what answers.
        serving: host, port, TLS, and the time for requests in work when it stops.
        owner: whose port it is: another owner's server may not share it.
    """

    def __init__(self, app: ASGIApp, serving: ServingSettings, owner: str = "") -> None:
        self._address = serving.host, serving.port
        self._lock = PortLock(serving.host, serving.port, owner or f"process {os.getpid()}")
        tls = serving.tls
        self._server = _Server(
            closed=self._lock.give_back,
            config=uvicorn.Config(
                _cancellable(app),
                http=_Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(serving.drain_s),
                ssl_certfile=None if tls is None else tls.certificate,
                ssl_keyfile=None if tls is None else tls.key,
            ),
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
        self._lock.take()
        try:
            listening = _listen(*self._address)
        except ServingError:
            self._lock.give_back()
            raise
        self._serving = asyncio.create_task(self._server.serve([listening]))

    async def stop(self) -> None:
        """Take no more connections; requests in work have `serving.drain_s`."""
        if self._serving is not None:
            self._server.should_exit = True
            await self._serving

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            ServingError: it has stopped by itself.
        """
        if self._serving is not None and self._serving.done():
            raise ServingError("the HTTP server has stopped", self._lock.place)


class _State(ServerState):
    draining = False
    """Connections are closed after the answer that they wait for."""


class _Server(uvicorn.Server):
    """Leaves signals to Ray, whose process this is."""

    def __init__(self, config: uvicorn.Config, closed: Callable[[], None]) -> None:
        super().__init__(config)
        self._closed = closed
        self.server_state: _State = _State()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Connections that are made but not accepted are reset with the socket: one turn of the loop takes
        # all that wait.
        await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        for one in sockets or []:
            one.close()
        self._closed()
        self.server_state.draining = True
        await asyncio.sleep(IDLE_S if self.server_state.connections else 0)
        await super().shutdown()


class _Protocol(HttpToolsProtocol):
    """uvicorn's, but headers end some time, and work for a client that is gone is cancelled."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._undelivered = 0
        """Bytes since the last end of a head or part of a body: the parser keeps them all."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None
        self._work: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_S, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()
        self._stop_watching()
        if self._work is not None:
            self._work.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching()

    def _watch_reader(self) -> None:
        self._reader_timer = self.loop.call_later(
            READ_S, self._look_at_reader, self.transport.get_write_buffer_size()
        )

    def _look_at_reader(self, before: int) -> None:
        """A client that asks and does not read would keep its answers here."""
        if self.transport.get_write_buffer_size() > before - READ_BYTES:
            self.transport.abort()
        else:
            self._watch_reader()

    def _stop_watching(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def data_received(self, data: bytes) -> None:
        self._undelivered += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._undelivered > HEAD_BYTES:
            self.send_400_response(f"headers may have at most {HEAD_BYTES} bytes")
        elif self._head_timer is None and (self._in_head or self._is_idle()):
            self._head_timer = self.loop.call_later(HEAD_S, self.transport.close)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._in_head, self._undelivered = False, 0
        self._stop_timer()
        super().on_headers_complete()
        if cast(_State, self.server_state).draining and self.cycle is not None:
            # The connection is closed after the answer, which says so.
            self.cycle.keep_alive = False

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

    def _is_idle(self) -> bool:
        """No request is in work: blank lines come, which are not yet one but end uvicorn's wait for one."""
        return self.cycle is None or self.cycle.response_complete

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
