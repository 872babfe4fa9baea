"""The page's application: `/`, the `/status` that it polls, and `/metrics` for Prometheus."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources

from deployments.drive import settle
from deployments.exchange import Served
from deployments.http.asgi import Reply, json_reply
from deployments.http.routes import Call, Handler
from deployments.observe.meter import CONTENT_TYPE, Meter, Snapshot, exposition
from deployments.page.facts import facts, status
from deployments.protocol.model import Model
from orchestrator.config.ensemble import Spec

SCRIPTS = ("nodes", "history", "chart", "live", "question", "sound", "raw", "answer", "page")
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
        meter: counts what happens in this process.
        others: snapshots of the processes behind it that can be reached.
    """

    def __init__(self, specs: Sequence[Spec], served: Sequence[Served], meter: Meter, others: Gather) -> None:
        self._facts = [facts(spec, one.model) for spec, one in zip(specs, served, strict=True)]
        self._served = tuple(served)
        self._meter = meter
        self._others = others
        self._figures: Sequence[Snapshot] = ()
        self._gathered = -FRESH_S
        self._gathering = asyncio.Lock()
        self._page = render()

    def renew(self, spec: Spec, model: Model) -> None:
        """Another release of a model is served."""
        self._facts = [facts(spec, model) if one["name"] == spec.name else one for one in self._facts]

    def routes(self) -> dict[str, dict[str, Handler]]:
        """Where each handler is."""
        return {"/": {"GET": self.page}, "/status": {"GET": self.status}, "/metrics": {"GET": self.metrics}}

    async def page(self, _call: Call) -> Reply:
        return self._page

    async def status(self, _call: Call) -> Reply:
        ready = await settle([one.ready() for one in self._served], READY_S, patient=True)
        document = status(self._facts, [_problem(result) for result in ready], await self._snapshots())
        return json_reply(document, headers=(NO_STORE,))

    async def metrics(self, _call: Call) -> Reply:
        text = exposition(await self._snapshots())
        return Reply(text.encode(), headers=((b"content-type", CONTENT_TYPE.encode()), NO_STORE))

    async def _snapshots(self) -> Sequence[Snapshot]:
        async with self._gathering:
            if time.monotonic() - self._gathered >= FRESH_S:
                self._figures = [self._meter.snapshot(), *await self._others()]
                self._gathered = time.monotonic()
            return self._figures


NO_STORE = (b"cache-control", b"no-store")


def _problem(result: BaseException | None) -> str:
    if result is None:
        return ""
    return str(result) or "it did not say in time that it is ready"


def render() -> Reply:
    """The page. Only its own two inline parts may run, and it may talk to its own server."""
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
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Reply(page.encode(), headers=tuple((n.lower().encode(), v.encode()) for n, v in headers.items()))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return resources.files("deployments.page").joinpath("assets", name).read_text(encoding="utf-8")
