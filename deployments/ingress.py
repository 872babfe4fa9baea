"""The ingress: the only module that knows HTTP. It turns requests into calls and every error into JSON.

Ray's own replies to overload, timeouts and unknown routes are plain text, which clients of the protocol
cannot read, so the limits and the deadline are kept here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from deployments import protocol
from deployments.drive import everyone, fetch
from deployments.exchange import Answer, Question
from orchestrator import __version__
from orchestrator.config.ensemble import Spec
from orchestrator.config.serving import ServingSettings
from orchestrator.errors import (
    DeadlineError,
    MemberFailedError,
    OrchestratorError,
    OverloadedError,
    QuorumError,
)

P = ParamSpec("P")
T = TypeVar("T")

SERVER_NAME = "orchestrator"
LARGE_BYTES = 256 * 1024
"""Bodies above this are decoded in a thread, so that the event loop goes on."""


@dataclass(frozen=True)
class Served:
    """A model and how to ask it."""

    model: protocol.Model
    predict: Callable[[Question], Awaitable[Answer]]
    """Answers rows within the time that is left; raises an `OrchestratorError`."""
    ready: Callable[[], Coroutine[Any, Any, None]]
    """Returns when the model can answer, raises an `OrchestratorError` when not."""


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

    def __serve_build_asgi_app__(self) -> Starlette:
        return self._app


def _served(spec: Spec, handle: DeploymentHandle[Any]) -> Served:
    async def predict(question: Question) -> Answer:
        answer: Answer = await fetch(handle.predict.remote(question))
        return answer

    async def ready() -> None:
        await fetch(handle.ready.remote())

    return Served(protocol.describe(spec), predict, ready)


def http_app(served: Sequence[Served], serving: ServingSettings) -> Starlette:
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
            OrchestratorError: _refuse,
            HTTPException: _refuse_route,
            ClientDisconnect: _gone,
            Exception: _refuse_unexpected,
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
        facts = {"name": SERVER_NAME, "version": __version__, "extensions": list(protocol.EXTENSIONS)}
        return _json(facts)

    async def live(self, _request: HttpRequest) -> Response:
        return _json({"live": True})

    async def ready(self, _request: HttpRequest) -> Response:
        await everyone([one.ready() for one in self._served.values()])
        return _json({"ready": True})

    async def metadata(self, request: HttpRequest) -> Response:
        return _json(self._find(request).model.metadata())

    async def model_ready(self, request: HttpRequest) -> Response:
        found = self._find(request)
        await everyone([found.ready()])
        return _json({"name": found.model.name, "ready": True})

    async def index(self, _request: HttpRequest) -> Response:
        states = await asyncio.gather(
            *(everyone([one.ready()]) for one in self._served.values()), return_exceptions=True
        )
        return _json(
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
                body = await _body(request, self._serving.max_body_bytes)
                header_length = request.headers.get(protocol.HEADER_LENGTH)
                decoded = await _maybe_threaded(len(body), protocol.decode, body, header_length, found.model)
                if decoded.timeout_s is not None:
                    deadline = min(deadline, loop.time() + decoded.timeout_s)
                    limit.reschedule(deadline)
                wanted = frozenset(name for name, _binary in decoded.outputs)
                answer = await found.predict(Question(decoded.rows, deadline - loop.time(), wanted))
                reply = await _maybe_threaded(
                    len(body), protocol.encode, found.model, decoded, answer.outputs, answer.facts()
                )
        except TimeoutError as error:
            raise DeadlineError("no answer in time", found.model.name) from error
        return Response(reply.body, headers=reply.headers)

    def _find(self, request: HttpRequest) -> Served:
        name, version = request.path_params["model"], request.path_params.get("version")
        found = self._served.get(name)
        if found is None:
            raise protocol.UnknownModelError(
                "no such model", name[:80], f"served here: {', '.join(self._served)}"
            )
        if version not in (None, found.model.version):
            raise protocol.UnknownModelError(
                f"{name} has no such version", version[:80], f"served here: {found.model.version}"
            )
        return found


async def _maybe_threaded(size: int, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    if size < LARGE_BYTES:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


async def _body(request: HttpRequest, limit: int) -> bytes:
    """The body, refused as soon as it is longer than `limit` bytes."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise protocol.UnsupportedEncodingError("compressed bodies are not supported", encoding[:80])
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and len(stated) < 20 and int(stated) > limit:
        raise protocol.TooLargeError(f"the body may have at most {limit} bytes", stated)
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise protocol.TooLargeError(f"the body may have at most {limit} bytes")
        parts.append(part)
    return b"".join(parts)


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(protocol.to_json(value), status, headers, media_type="application/json")


def _status(error: OrchestratorError) -> int:
    if isinstance(error, protocol.ProtocolError):
        return error.status
    if isinstance(error, DeadlineError):
        return 504
    if isinstance(error, OverloadedError | QuorumError | MemberFailedError):
        return 503
    return 500


async def _refuse(_request: HttpRequest, error: Exception) -> Response:
    """Errors that say what is wrong."""
    if not isinstance(error, OrchestratorError):
        raise error
    return _json({"error": str(error)}, _status(error))


async def _refuse_route(request: HttpRequest, error: Exception) -> Response:
    """Unknown paths and wrong methods."""
    if not isinstance(error, HTTPException):
        raise error
    text = f"{error.detail}: {request.method} {request.url.path[:200]}"
    return _json({"error": text}, error.status_code, error.headers)


async def _gone(_request: HttpRequest, _error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the code is for the access log


async def _refuse_unexpected(_request: HttpRequest, _error: Exception) -> Response:
    """A defect; Starlette raises it again once this is sent, and Serve logs it."""
    return _json({"error": "internal error; see the server's log"}, 500)
