"""The ingress: hands requests from HTTP and gRPC to the ensembles' deployments."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from deployments.drive import fetch
from deployments.exchange import Answer, Question, Served
from deployments.front import Front
from deployments.fused import Fused
from deployments.grpc_server import GrpcServer
from deployments.http.access import Access
from deployments.http.app import HttpApp
from deployments.http.server import counted, server_app
from deployments.observe.meter import Meter, Snapshot
from deployments.observe.replicas import gather, this_replica
from deployments.page.site import Site
from deployments.placement import Here, Mixed
from deployments.protocol.model import describe
from orchestrator.config.ensemble import Spec
from orchestrator.config.serving import ServingSettings


class Ingress:
    """The application's front: `serve.ingress()` asks it for its ASGI application.

    Args:
        specs: the served ensembles.
        places: the deployment of each, or what runs in this process.
        serving: limits, keys and logs.

    Raises:
        ConfigError: the file of keys cannot be read.
    """

    def __init__(
        self,
        specs: Sequence[Spec],
        places: Sequence[DeploymentHandle[Any] | Here],
        serving: ServingSettings,
    ) -> None:
        self._here: list[Fused | Mixed] = []
        served = [self._served(spec, place) for spec, place in zip(specs, places, strict=True)]
        self._behind = [place for place in places if isinstance(place, DeploymentHandle)]
        meter = Meter(this_replica())
        front = Front(counted(served, meter), serving)
        access = Access(serving.access)
        port = serving.grpc_port
        grpc = None if port is None else GrpcServer(front, serving.host, port, access)
        protocol = HttpApp(front, grpc, Site(specs, served, meter, self._snapshots).routes())
        # Serve's own HTTP server sends the request's id back.
        self._app = server_app(protocol, list(front.entries), access, serving, meter, echo=False)

    async def _snapshots(self) -> list[Snapshot]:
        here = [await ensemble.snapshots() for ensemble in self._here]
        return [*itertools.chain(*here), *await gather(self._behind)]

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            MemberFailedError: an ensemble of this process hangs.
        """
        for ensemble in self._here:
            ensemble.check_health()

    def _served(self, spec: Spec, place: DeploymentHandle[Any] | Here) -> Served:
        if not isinstance(place, Here):
            return _served(spec, place)
        ensemble = place.open(spec)
        self._here.append(ensemble)
        return Served(describe(spec), ensemble.predict, ensemble.ready)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app


def _served(spec: Spec, handle: DeploymentHandle[Any]) -> Served:
    async def predict(question: Question) -> Answer:
        answer: Answer = await fetch(handle.predict.remote(question))
        return answer

    async def ready() -> None:
        await fetch(handle.ready.remote())

    return Served(describe(spec), predict, ready)
