"""The routes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from deployments.drive import everyone
from deployments.exchange import Answer, Question, Served
from deployments.http.errors import gone, refuse, refuse_route, refuse_unexpected, to_reply
from deployments.http.limits import read_body
from deployments.protocol import rest
from deployments.protocol.errors import UnknownModelError
from orchestrator import __version__
from orchestrator.config.serving import ServingSettings
from orchestrator.errors import DeadlineError, OrchestratorError, OverloadedError

P = ParamSpec("P")
T = TypeVar("T")

SERVER_NAME = "orchestrator"
LARGE_BYTES = 256 * 1024
"""Bodies above this are decoded in a thread, so that the event loop goes on."""
HttpApp = Starlette


def http_app(served: Sequence[Served], serving: ServingSettings) -> HttpApp:
    """The protocol as an ASGI application over models that can be asked."""
    endpoints = _Endpoints({one.model.name: one for one in served}, serving)
    model = "/v2/models/{model}"
    routes = [
        # Both spellings: clients ask for /v2 and do not follow redirects.
        Route("/v2", endpoints.server),
        Route("/v2/", endpoints.server),
        Route("/v2/health/live", endpoints.live),
        Route("/v2/health/ready", endpoints.ready),
        Route("/v2/repository/index", endpoints.index, methods=["POST"]),
    ]
    for base in (model, model + "/versions/{version}"):
        routes += [
            Route(base, endpoints.metadata),
            Route(base + "/ready", endpoints.model_ready),
            Route(base + "/infer", endpoints.infer, methods=["POST"]),
        ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            OrchestratorError: refuse,
            HTTPException: refuse_route,
            ClientDisconnect: gone,
            Exception: refuse_unexpected,
        },
    )
    app.router.redirect_slashes = False
    return app


class _Endpoints:
    """Handlers of the routes."""

    def __init__(self, served: Mapping[str, Served], serving: ServingSettings) -> None:
        self._served = served
        self._serving = serving
        self._working = 0

    async def server(self, _request: HttpRequest) -> Response:
        facts = {"name": SERVER_NAME, "version": __version__, "extensions": list(rest.EXTENSIONS)}
        return to_reply(facts)

    async def live(self, _request: HttpRequest) -> Response:
        return to_reply({"live": True})

    async def ready(self, _request: HttpRequest) -> Response:
        await everyone([one.ready() for one in self._served.values()])
        return to_reply({"ready": True})

    async def metadata(self, request: HttpRequest) -> Response:
        return to_reply(self._find(request).model.metadata())

    async def model_ready(self, request: HttpRequest) -> Response:
        found = self._find(request)
        await everyone([found.ready()])
        return to_reply({"name": found.model.name, "ready": True})

    async def index(self, _request: HttpRequest) -> Response:
        states = await asyncio.gather(
            *(everyone([one.ready()]) for one in self._served.values()), return_exceptions=True
        )
        return to_reply(
            [
                {
                    "name": one.model.name,
                    "version": one.model.version,
                    "state": "READY" if state is None else "UNAVAILABLE",
                    "reason": "" if state is None else str(state),
                }
                for one, state in zip(self._served.values(), states, strict=True)
            ]
        )

    async def infer(self, request: HttpRequest) -> Response:
        found = self._find(request)
        if self._working >= self._serving.max_requests:
            raise OverloadedError("too many requests are in work", self._working, "try again later")
        self._working += 1
        try:
            return await self._infer(request, found)
        finally:
            self._working -= 1

    async def _infer(self, request: HttpRequest, found: Served) -> Response:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._serving.deadline_s
        try:
            async with asyncio.timeout_at(deadline) as limit:
                body = await read_body(request, self._serving.max_body_bytes)
                header_length = request.headers.get(rest.HEADER_LENGTH)
                decoded = await _maybe_threaded(len(body), rest.decode, body, header_length, found.model)
                if decoded.timeout_s is not None:
                    deadline = min(deadline, loop.time() + decoded.timeout_s)
                    limit.reschedule(deadline)
                wanted = frozenset(name for name, _binary in decoded.outputs)
                answer = await found.predict(Question(decoded.rows, deadline - loop.time(), wanted))
                reply = await _maybe_threaded(
                    len(body), rest.encode, found.model, decoded, answer.outputs, _facts(answer)
                )
        except TimeoutError as error:
            raise DeadlineError("no answer in time", found.model.name) from error
        return Response(reply.body, headers=reply.headers)

    def _find(self, request: HttpRequest) -> Served:
        name, version = request.path_params["model"], request.path_params.get("version")
        found = self._served.get(name)
        if found is None:
            raise UnknownModelError("no such model", name[:80], f"served here: {', '.join(self._served)}")
        if version not in (None, found.model.version):
            raise UnknownModelError(
                f"{name} has no such version", version[:80], f"served here: {found.model.version}"
            )
        return found


def _facts(answer: Answer) -> dict[str, str | int | bool]:
    return {
        "weight_epoch": answer.weight_epoch,
        "degraded": answer.degraded,
        "members": ",".join(answer.members),
    }


async def _maybe_threaded(size: int, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    if size < LARGE_BYTES:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)
