"""HTTP on a port of the ingress's own, past Ray Serve's proxies.

Between a proxy and the application Ray Serve makes tasks, queues and header objects for each request, which
costs several times what decoding, walking and encoding cost. Where the ingress is known to run on the machine
that is asked, it listens itself; replicas on one machine share the port (`SO_REUSEPORT`).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from orchestrator.config.serving import ServingSettings
from orchestrator.errors import ServingError

BACKLOG = 2048
STOP_S = 5
"""Time that requests in work have when the server stops."""


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
                app,
                http="httptools",
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
            ServingError: the port cannot be listened on.
        """
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


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=True)
    except OSError as error:
        raise ServingError(
            f"cannot listen ({error.strerror})", f"{host}:{port}", "choose another port"
        ) from error
