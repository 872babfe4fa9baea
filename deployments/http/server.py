"""What stands around the routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from starlette.types import ASGIApp

from deployments.exchange import Served, fair_s
from deployments.http.access import Access, Guarded
from deployments.http.app import HttpApp
from deployments.observe.meter import Meter
from deployments.observe.requests import Observed, watched
from orchestrator.config.serving import ServingSettings


def counted(served: Sequence[Served], meter: Meter, deadline_s: float) -> list[Served]:
    """The same models, with their answers and failures counted."""
    fair = fair_s(deadline_s)
    return [replace(one, predict=watched(one.model.name, one.predict, meter, fair)) for one in served]


def server_app(
    protocol: HttpApp,
    models: Sequence[str],
    access: Access,
    serving: ServingSettings,
    meter: Meter,
    *,
    echo: bool = True,
) -> ASGIApp:
    """The routes inside the keys, inside what counts and logs.

    Args:
        protocol: the routes.
        models: names of the served models.
        access: who may pass.
        serving: how requests are logged.
        meter: counts them.
        echo: see `Observed`.
    """
    return Observed(Guarded(protocol, access), meter, models, log=serving.request_log, echo=echo)
