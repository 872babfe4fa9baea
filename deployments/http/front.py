"""Everything that a port answers: the protocol and the page, inside the keys, inside what counts and logs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.exchange import Served
from deployments.http.access import Access
from deployments.http.app import http_app
from deployments.observe.meter import Meter, Snapshot
from deployments.observe.requests import Observed, watched
from deployments.page.site import PATHS, Site
from orchestrator.config.ensemble import Spec
from orchestrator.config.serving import ServingSettings


def front(
    specs: Sequence[Spec],
    served: Sequence[Served],
    serving: ServingSettings,
    *,
    meter: Meter,
    others: Callable[[], Awaitable[Sequence[Snapshot]]],
    echo: bool = True,
) -> ASGIApp:
    """The whole application over models that can be asked.

    Args:
        specs: the served ensembles.
        served: how to ask each.
        serving: limits, keys and logs.
        meter: counts what happens in this process.
        others: snapshots of the processes behind it.
        echo: see `Observed`.

    Raises:
        ConfigError: the file of keys cannot be read.
    """
    counted = [replace(one, predict=watched(one.model.name, one.predict, meter)) for one in served]

    async def gather() -> Sequence[Snapshot]:
        return [meter.snapshot(), *await others()]

    protocol, site = http_app(counted, serving), Site(specs, served, gather).app()

    async def either(scope: Scope, receive: Receive, send: Send) -> None:
        ours = scope["type"] == "http" and scope["path"] in PATHS
        await (site if ours else protocol)(scope, receive, send)

    names = [spec.name for spec in specs]
    guarded = Access(either, serving.access)
    return Observed(guarded, meter, names, log=serving.request_log, echo=echo)
