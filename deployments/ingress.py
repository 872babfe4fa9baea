"""The ingress: hands requests from HTTP and gRPC to the ensembles' deployments."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from deployments.bundle import Bundler
from deployments.drive import fetch, fetch_all, fetch_stream
from deployments.exchange import Answer, Question, Served
from deployments.front import Front
from deployments.fused import Fused
from deployments.grpc_server import GrpcServer
from deployments.http.access import Access
from deployments.http.admin import Admin
from deployments.http.app import Companion, HttpApp
from deployments.http.listener import Listener
from deployments.http.server import counted, server_app
from deployments.loopback import listen_where_ray_does
from deployments.observe import families
from deployments.observe.meter import Meter, Snapshot
from deployments.observe.replicas import gather, this_replica
from deployments.page.site import Site
from deployments.placement import Here, Mixed
from deployments.protocol.model import describe
from deployments.releases.controls import Controls, Tell
from deployments.releases.follower import Follower
from orchestrator.config.ensemble import Cascade, Spec, walk_nodes
from orchestrator.config.serving import ServingSettings
from orchestrator.errors import MemberFailedError, OrchestratorError, ReleaseChangedError
from orchestrator.store.store import Store

SLOTS = 2
"""Calls of an ensemble's deployment that run at once before questions wait to go together."""
LINGER_S = 0.01
"""Longest such wait: what waits for a member that hangs must not hold up what comes after it."""
ALIKE = 1.1
"""Most time over the least of questions that go together. A bundle is as slow as its slowest, and members
that hang are waited for until 0.8 of a question's time is over."""
CHANGE_S = 300.0
"""Longest time for all replicas to load a release."""
CHANGING = ("follow", "learn")
"""Methods of `Follower` after which another release may be live."""


class Ingress:
    """The application's front: `serve.ingress()` asks it for its ASGI application.

    Args:
        specs: the served ensembles.
        places: the deployment of each, or what runs in this process.
        serving: limits, keys and logs.
        refs: whose live releases they are; empty for a spec that was given whole.
        store: with the releases.
        direct: listen on the settings' host and port, beside whatever Serve does.

    Raises:
        ConfigError: the file of keys cannot be read.
    """

    def __init__(
        self,
        specs: Sequence[Spec],
        places: Sequence[DeploymentHandle[Any] | Here],
        serving: ServingSettings,
        refs: Sequence[str],
        store: str,
        *,
        direct: bool = False,
    ) -> None:
        listen_where_ray_does()
        self._here: dict[str, Fused | Mixed | Follower] = {}
        self._behind = {
            spec.name: place
            for spec, place in zip(specs, places, strict=True)
            if isinstance(place, DeploymentHandle)
        }
        for spec, place in zip(specs, places, strict=True):
            if isinstance(place, Here):
                self._here[spec.name] = place.follow(self._renew) if place.name else place.open(spec)
        live = [self._live(spec) for spec in specs]
        served = [self._served(spec) for spec in live]
        self._meter = meter = Meter(this_replica())
        self._front = front = Front(counted(served, meter, serving.deadline_s), serving)
        access = Access(serving.access)
        self._site = Site(live, served, meter, self._snapshots)
        controls = {
            spec.name: Controls(Store(store, create=False), ref, self._tell(spec.name))
            for spec, ref in zip(specs, refs, strict=True)
            if ref
        }
        self._beside = beside = list[Companion]()
        protocol = HttpApp(front, beside, self._site.routes() | Admin(controls, front).routes())
        names = list(front.entries)
        if serving.grpc_port is not None:
            beside.append(GrpcServer(front, serving.host, serving.grpc_port, access, _owner()))
        if direct:
            app = server_app(protocol, names, access, serving, meter)
            beside.append(Listener(app, serving, _owner()))
        # Serve's own HTTP server sends the request's id back.
        self._app = server_app(protocol, names, access, serving, meter, echo=False)

    async def _snapshots(self) -> list[Snapshot]:
        self._meter.set(families.TASKS, to=len(asyncio.all_tasks()))
        here = [await ensemble.snapshots() for ensemble in self._here.values()]
        behind = await gather(self._behind.values())
        # Each process once: ensembles may share a member that is a deployment.
        return list({one.replica: one for one in itertools.chain(*here, behind)}.values())

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            MemberFailedError: an ensemble of this process hangs.
            ServingError: a server of this process has stopped.
        """
        for companion in self._beside:
            companion.check_health()
        for ensemble in self._here.values():
            ensemble.check_health()

    async def control(self, model: str, method: str, args: Sequence[Any]) -> Any:
        """Called by an ingress replica on all: a method of what follows the releases of a model here."""
        return await getattr(self._here[model], method)(*args)

    async def look(self, model: str) -> None:
        """Called by an ingress replica on all: see what is live of a model whose deployment is another."""
        # Not by whether it is ready: one that is not must be seen, and rolled back, all the same.
        self._renew(await fetch(self._behind[model].current.remote()))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app

    def _live(self, spec: Spec) -> Spec:
        """What is served at first: the live release may be another than when the application was built."""
        ensemble = self._here.get(spec.name)
        return ensemble.spec if isinstance(ensemble, Follower) else spec

    def _renew(self, spec: Spec) -> None:
        """Another release of a model took over."""
        model = describe(spec)
        if model != self._front.entries[spec.name].model:
            self._front.renew(model)
            self._site.renew(spec, model)

    def _served(self, spec: Spec) -> Served:
        here = self._here.get(spec.name)
        if here is not None:

            async def loaded() -> None:
                await here.ready()

            return Served(describe(spec), here.predict, loaded)
        handle = self._behind[spec.name]

        async def ready() -> None:
            # What follows releases says what is live.
            live: Spec | None = await fetch(handle.ready.remote())
            if live is not None:
                self._renew(live)

        ask = _asks(spec, handle)

        async def predict(question: Question) -> Answer:
            try:
                if question.told is None:
                    answer = await ask(question)
                else:
                    answer = await _ask_in_stages(spec, handle, question, question.told)
            except ReleaseChangedError:
                await ready()  # the next request is encoded as the new one wants it
                raise
            return answer

        return Served(describe(spec), predict, ready)

    def _tell(self, model: str) -> Tell:
        async def behind(method: str, *args: Any) -> list[Any]:
            told = await fetch_all(self._behind[model], method, *args, timeout_s=CHANGE_S)
            if method in CHANGING:
                await fetch_all(_own(), "look", model, timeout_s=CHANGE_S)
            return told

        async def here(method: str, *args: Any) -> list[Any]:
            return await fetch_all(_own(), "control", model, method, args, timeout_s=CHANGE_S)

        return behind if model in self._behind else here


async def _ask_in_stages(
    spec: Spec, handle: DeploymentHandle[Any], question: Question, told: Callable[[Answer], None]
) -> Answer:
    """Asks an ensemble's deployment, which tells what each stage of a cascade says."""
    responses = handle.options(stream=True).stream.remote(replace(question, told=None))
    last: bool
    answer: Answer
    async for last, answer in fetch_stream(responses):
        if last:
            return answer
        told(answer)
    raise MemberFailedError("a stream of answers has no end", spec.name)


def _asks(spec: Spec, handle: DeploymentHandle[Any]) -> Callable[[Question], Awaitable[Answer]]:
    """Asks an ensemble's deployment; what waits at the same time, and may wait as long, goes as one call.

    But not to cascades: rows that leave early would wait for others.
    """

    async def one(question: Question) -> Answer:
        answer: Answer = await fetch(handle.predict.remote(question))
        return answer

    async def send(questions: list[tuple[Question, float]]) -> Sequence[Answer | OrchestratorError]:
        now = asyncio.get_running_loop().time()
        left = [replace(question, timeout_s=until - now) for question, until in questions]
        if len(left) == 1:
            return [await one(left[0])]
        found: list[Answer | OrchestratorError] = await fetch(handle.predict_many.remote(left))
        return found

    if any(isinstance(node, Cascade) for node in walk_nodes(spec.tree)):
        return one
    bundlers: dict[int, Bundler[tuple[Question, float], Answer]] = {}

    async def together(question: Question) -> Answer:
        until = asyncio.get_running_loop().time() + question.timeout_s
        alike = round(math.log(max(question.timeout_s, LINGER_S), ALIKE))
        if alike not in bundlers:
            bundlers[alike] = Bundler(
                send, lambda asked: asked[0].rows.nbytes, slots=SLOTS, linger_s=LINGER_S
            )
        return await bundlers[alike].ask((question, until))

    return together


def _own() -> DeploymentHandle[Any]:
    """All replicas of this process's deployment."""
    context = serve.get_replica_context()
    return serve.get_deployment_handle(context.deployment, context.app_name)


def _owner() -> str:
    """The application, whose replicas share its port."""
    context = serve.get_replica_context()
    return f"{ray.get_runtime_context().gcs_address} {context.app_name}"
