"""The page's application: `/`, the `/status` that it polls, and `/metrics` for Prometheus."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import resources

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments.drive import settle
from deployments.exchange import Served
from deployments.http.errors import refuse_route, refuse_unexpected, to_reply
from deployments.observe.meter import CONTENT_TYPE, Snapshot, exposition
from deployments.page.facts import facts, status
from orchestrator.config.ensemble import Spec

PATHS = ("/", "/status", "/metrics")
SCRIPTS = ("nodes", "history", "chart", "live", "question", "answer", "page")
"""Joined in this order; each is a few functions about one thing."""
READY_S = 2.0
"""A model that does not say within this time that it is ready is shown as not ready."""
FRESH_S = 0.5
"""Figures are gathered from all processes at most this often, however many browsers look."""

Gather = Callable[[], Awaitable[Sequence[Snapshot]]]


class Site:
    """Handlers of the page's routes.

    Args:
        specs: the served ensembles.
        served: how to ask each.
        gather: snapshots of all processes that can be reached.
    """

    def __init__(self, specs: Sequence[Spec], served: Sequence[Served], gather: Gather) -> None:
        self._facts = [facts(spec, one) for spec, one in zip(specs, served, strict=True)]
        self._served = tuple(served)
        self._gather = gather
        self._figures: Sequence[Snapshot] = ()
        self._gathered = -FRESH_S
        self._page, self._headers = render()

    def app(self) -> Starlette:
        """The routes as an ASGI application."""
        handlers = (self.page, self.status, self.metrics)
        return Starlette(
            routes=[Route(path, handler) for path, handler in zip(PATHS, handlers, strict=True)],
            exception_handlers={HTTPException: refuse_route, Exception: refuse_unexpected},
        )

    async def page(self, _request: Request) -> Response:
        return Response(self._page, headers=self._headers, media_type="text/html")

    async def status(self, _request: Request) -> Response:
        ready = await settle([one.ready() for one in self._served], READY_S, patient=True)
        document = status(self._facts, [_problem(result) for result in ready], await self._snapshots())
        return to_reply(document, headers=_NO_STORE)

    async def metrics(self, _request: Request) -> Response:
        text = exposition(await self._snapshots())
        return Response(text, headers=_NO_STORE | {"Content-Type": CONTENT_TYPE})

    async def _snapshots(self) -> Sequence[Snapshot]:
        if time.monotonic() - self._gathered >= FRESH_S:
            self._figures = await self._gather()
            self._gathered = time.monotonic()
        return self._figures


_NO_STORE = {"Cache-Control": "no-store"}


def _problem(result: BaseException | None) -> str:
    if result is None:
        return ""
    return str(result) or "it did not say in time that it is ready"


def render() -> tuple[bytes, Mapping[str, str]]:
    """The page and its headers. Only its own two inline parts may run, and it may talk to its own server."""
    css, script = _asset("page.css"), "".join(_asset(f"{name}.js") for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{script}}})();\n'
    page = _asset("page.html").replace("{css}", css).replace("{js}", script)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(css)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return page.encode(), {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return resources.files("deployments.page").joinpath("assets", name).read_text(encoding="utf-8")
