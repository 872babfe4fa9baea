"""The ingress: hands requests from HTTP to the ensembles' deployments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from deployments.drive import fetch
from deployments.exchange import Answer, Question, Served
from deployments.http.front import front
from deployments.observe.meter import Meter, Snapshot
from deployments.observe.replicas import gather, this_replica
from deployments.protocol.model import describe
from orchestrator.config.ensemble import Spec
from orchestrator.config.serving import ServingSettings


class Ingress:
    """The application's front: `serve.ingress()` asks it for its ASGI application.

    Args:
        specs: the served ensembles.
        handles: the deployment of each.
        serving: limits, keys and logs.

    Raises:
        ConfigError: the file of keys cannot be read.
    """

    def __init__(
        self, specs: Sequence[Spec], handles: Sequence[DeploymentHandle[Any]], serving: ServingSettings
    ) -> None:
        served = [_served(spec, handle) for spec, handle in zip(specs, handles, strict=True)]

        async def behind() -> list[Snapshot]:
            return await gather(handles)

        meter = Meter(this_replica())
        # Serve's own HTTP server sends the request's id back.
        self._app = front(specs, served, serving, meter=meter, others=behind, echo=False)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app


def _served(spec: Spec, handle: DeploymentHandle[Any]) -> Served:
    async def predict(question: Question) -> Answer:
        answer: Answer = await fetch(handle.predict.remote(question))
        return answer

    async def ready() -> None:
        await fetch(handle.ready.remote())

    return Served(describe(spec), predict, ready)
