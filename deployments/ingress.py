"""The ingress: hands requests from HTTP to the ensembles' deployments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.drive import fetch
from deployments.exchange import Answer, Question, Served
from deployments.http.app import HttpApp, http_app
from deployments.protocol.model import describe
from orchestrator.config.ensemble import Spec
from orchestrator.config.serving import ServingSettings


class Ingress:
    """The application's front: `serve.ingress()` asks it for its ASGI application.

    Args:
        specs: the served ensembles.
        handles: the deployment of each.
        serving: limits.
    """

    def __init__(
        self, specs: Sequence[Spec], handles: Sequence[DeploymentHandle[Any]], serving: ServingSettings
    ) -> None:
        served = [_served(spec, handle) for spec, handle in zip(specs, handles, strict=True)]
        self._app = http_app(served, serving)

    def __serve_build_asgi_app__(self) -> HttpApp:
        return self._app


def _served(spec: Spec, handle: DeploymentHandle[Any]) -> Served:
    async def predict(question: Question) -> Answer:
        answer: Answer = await fetch(handle.predict.remote(question))
        return answer

    async def ready() -> None:
        await fetch(handle.ready.remote())

    return Served(describe(spec), predict, ready)
