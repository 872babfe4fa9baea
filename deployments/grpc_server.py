"""The protocol over gRPC, beside HTTP in the ingress.

Ray Serve's own gRPC proxy binds every interface; this server listens where HTTP does.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import grpc
import grpc.aio

from deployments.exchange import Question
from deployments.front import SERVER_NAME, Entry, Front, check_given, maybe_threaded
from deployments.http.access import Access, Refusal, token_of
from deployments.port_lock import PortLock
from deployments.protocol import grpc_messages as messages
from deployments.protocol.errors import ProtocolError, TooLargeError, UnknownModelError
from deployments.protocol.rest import EXTENSIONS
from orchestrator import __version__
from orchestrator.errors import (
    DeadlineError,
    MemberFailedError,
    OrchestratorError,
    OverloadedError,
    QuorumError,
    ServingError,
)

logger = logging.getLogger(__name__)

METADATA_BYTES = 64 * 1024
"""Longest metadata of a call, as of headers over HTTP."""
OVERHEAD_BYTES = 64 * 1024
"""What a message may have beside its tensor."""
IDLE_S = 75.0
"""Time that a stream is kept without a message, as HTTP keeps an idle connection."""
_OPEN = ("ServerLive", "ServerReady")
"""Methods that ask for no key."""
_Asked = messages.message("ModelInferRequest")


class GrpcServer:
    """Serves the models of a front on a port; several replicas on one machine share it.

    Args:
        front: the models.
        host: where to listen.
        port: likewise.
        access: who may ask; everybody when not given.
        owner: whose port it is: another owner's server may not share it.
    """

    def __init__(
        self, front: Front, host: str, port: int, access: Access | None = None, owner: str = ""
    ) -> None:
        self._front = front
        # Not even the owner's other server, HTTP, may have the same port.
        self._lock = PortLock(host, port, f"gRPC of {owner or f'process {os.getpid()}'}")
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._access = access
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            ServingError: the port cannot be listened on, or the TLS files cannot be read.
        """
        limit = self._front.serving.max_body_bytes + OVERHEAD_BYTES
        guards = [] if self._access is None else [Keys(self._access)]
        self._server = grpc.aio.server(
            interceptors=guards,
            options=[
                ("grpc.max_receive_message_length", limit),
                # An answer is as long as its request lets it be.
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", METADATA_BYTES),
            ],
            # A message is received whole before the gate is asked; calls that wait for nothing (liveness,
            # metadata) need room beside those of inference.
            maximum_concurrent_rpcs=2 * self._front.serving.max_requests,
        )
        service = _Service(self._front, self._access)
        handlers = {name: service.handler(name) for name in messages.METHODS}
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(messages.SERVICE, handlers)]
        )
        self._lock.take()
        try:
            self._listen(self._server)
            await self._server.start()
        except RuntimeError as error:
            self._lock.give_back()
            raise ServingError("cannot listen for gRPC", self._address, "choose another port") from error
        except OSError as error:
            self._lock.give_back()
            raise ServingError("the TLS files cannot be used", error.strerror) from error

    def _listen(self, server: grpc.aio.Server) -> None:
        tls = self._front.serving.tls
        if tls is None:
            server.add_insecure_port(self._address)
            return
        pair = Path(tls.key).read_bytes(), Path(tls.certificate).read_bytes()
        server.add_secure_port(self._address, grpc.ssl_server_credentials([pair]))

    def check_health(self) -> None:
        """Called by Serve; gRPC's own threads end with the process alone."""

    async def stop(self) -> None:
        """Take no more calls; those in work have `serving.drain_s`."""
        if self._server is not None:
            await self._server.stop(self._front.serving.drain_s)
        self._lock.give_back()


class Keys(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Asks each call but those of liveness and readiness for a key: in its metadata, as HTTP in headers.

    The server listens where the settings say, which need keys beyond loopback: who comes without is here.
    """

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        method = details.method.rpartition("/")[2]
        if method not in _OPEN:
            refused = _refusal(self._access, details.invocation_metadata)
            if refused is not None:
                return _refusing(await continuation(details), refused)
        return await continuation(details)


def _refusal(access: Access, metadata: Any) -> Refusal | None:
    return access.refusal(token_of(dict(metadata)), admin=False, here=True)


_CODES = {401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED}


def _refusing(handler: Any, refused: Refusal) -> Any:
    """A handler that refuses, of streams: it is called before a message is there, which may never come."""
    code = _CODES.get(refused.status, grpc.StatusCode.RESOURCE_EXHAUSTED)

    async def refuse(_stream: Any, context: Any) -> None:
        await context.abort(code, refused.sentence)

    # None: no such method.
    return None if handler is None else grpc.stream_unary_rpc_method_handler(refuse)


class _Service:
    """The methods, each named as in the protocol."""

    def __init__(self, front: Front, access: Access | None) -> None:
        self._front = front
        self._access = access

    def handler(self, name: str) -> Any:
        """The method as gRPC wants it: messages in and out, errors as status codes."""
        method = messages.METHODS[name]
        request, answer = messages.message(method.input_type.name), messages.message(method.output_type.name)
        # All as streams: gRPC waits without end for the message of one that is not.
        make = grpc.stream_unary_rpc_method_handler
        kind = None if name in _OPEN else request
        function: Callable[..., Any] = _checked(getattr(self, name), kind, self._front.serving.deadline_s)
        if method.client_streaming:
            make, function = grpc.stream_stream_rpc_method_handler, getattr(self, name)
        # Bytes in: what a message becomes is looked at before it is made.
        return make(function, None, answer.SerializeToString)

    async def ServerLive(self, _asked: Any, _context: Any) -> Any:  # noqa: N802 - the protocol's name, as those below
        return messages.message("ServerLiveResponse")(live=True)

    async def ServerReady(self, _asked: Any, _context: Any) -> Any:  # noqa: N802
        return messages.message("ServerReadyResponse")(ready=await self._is_ready(None))

    async def ModelReady(self, asked: Any, _context: Any) -> Any:  # noqa: N802
        found = self._front.find(asked.name, asked.version)
        return messages.message("ModelReadyResponse")(ready=await self._is_ready([found]))

    async def ServerMetadata(self, _asked: Any, _context: Any) -> Any:  # noqa: N802
        answer = messages.message("ServerMetadataResponse")
        return answer(name=SERVER_NAME, version=__version__, extensions=EXTENSIONS)

    async def ModelMetadata(self, asked: Any, _context: Any) -> Any:  # noqa: N802
        return messages.metadata(self._front.find(asked.name, asked.version).model)

    async def RepositoryIndex(self, asked: Any, _context: Any) -> Any:  # noqa: N802
        models = [one for one in await self._front.index() if one["state"] == "READY" or not asked.ready]
        return messages.message("RepositoryIndexResponse")(models=models)

    async def ModelInfer(self, asked: Any, context: Any) -> Any:  # noqa: N802
        entry = self._front.find(asked.model_name, asked.model_version)
        with self._front.gate, self._front.bodies.room() as take:
            start = perf_counter_ns()
            try:
                take(asked.ByteSize())
                return await self._infer(asked, entry, start, _time_left(context))
            except BaseException:
                entry.statistics.fail(start)
                raise

    async def ModelStreamInfer(self, stream: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Answers the requests of a stream one after the other; each counts for the key's rate."""
        answer = messages.message("ModelStreamInferResponse")
        first = True
        async for data in _each(stream):
            # Before it is read, which may take long. The interceptor let the stream in: the first request.
            refused = None if first else self._refused(context)
            first = False
            if refused is not None:
                del data
                yield answer(error_message=refused.sentence)
                continue
            try:
                asked = messages.parse(data, _Asked)
            except ProtocolError as error:
                yield answer(error_message=str(error))
                continue
            finally:
                del data  # what it became is what counts among the bodies in work
            try:
                yield answer(infer_response=await self.ModelInfer(asked, context))
            except Exception as error:
                _code, sentence = _status(error)
                yield answer(error_message=sentence, infer_response={"id": asked.id})

    def _refused(self, context: Any) -> Refusal | None:
        return None if self._access is None else _refusal(self._access, context.invocation_metadata())

    async def _infer(self, asked: Any, entry: Entry, start: int, time_s: float) -> Any:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(self._front.serving.deadline_s, time_s)
        # A small file may hold a large image.
        files = entry.takes_files and any(one.datatype == "BYTES" for one in asked.inputs)
        threaded = asked.ByteSize() >= entry.large_bytes or files
        request = await maybe_threaded(threaded, messages.decode, asked, entry.model, entry.codec.encoder)
        decoded = perf_counter_ns()
        left = min(deadline - loop.time(), request.timeout_s or self._front.serving.deadline_s)
        wanted = frozenset(name for name, _binary in request.outputs)
        question = Question(
            request.rows, left, wanted, request.id or "", request.encoded_by, asked.model_version
        )
        answer = await entry.served.predict(question)
        check_given(answer, wanted)
        known = perf_counter_ns()
        encoded = messages.encode(entry.model_of(answer), request, answer.outputs, answer.facts())
        entry.statistics.succeed(len(request.rows), (start, decoded, known, perf_counter_ns()))
        return encoded

    async def _is_ready(self, entries: list[Entry] | None) -> bool:
        try:
            await self._front.ready(entries)
        except OrchestratorError:
            return False
        return True


def _time_left(context: Any) -> float:
    """What the client's own deadline leaves, in seconds; members are not asked for longer."""
    left: float | None = context.time_remaining()
    return math.inf if left is None else left


def _checked(
    method: Callable[[Any, Any], Awaitable[Any]], kind: Any, longest_s: float
) -> Callable[[AsyncIterator[bytes], Any], Awaitable[Any]]:
    """A method of one message of that kind, which arrives within that time; without a kind none is read."""

    async def call(stream: AsyncIterator[bytes], context: Any) -> Any:
        try:
            asked = None if kind is None else messages.parse(await _only(stream, longest_s), kind)
            return await method(asked, context)
        except Exception as error:
            code, sentence = _status(error)
        await context.abort(code, sentence)

    return call


async def _each(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The messages of a stream, until it is idle for too long."""
    while True:
        try:
            async with asyncio.timeout(IDLE_S):
                data = [await anext(stream)]
        except (StopAsyncIteration, TimeoutError):
            return
        yield data.pop()  # not held here meanwhile


async def _only(stream: AsyncIterator[bytes], longest_s: float) -> bytes:
    try:
        async with asyncio.timeout(longest_s):
            async for data in stream:
                return data
    except TimeoutError as error:
        raise DeadlineError("the message did not arrive in time", f"{longest_s:g} s") from error
    raise ProtocolError("the call has no message")


def _status(error: Exception) -> tuple[Any, str]:
    """The status code and the sentence for an error; what went wrong inside is for the log."""
    if isinstance(error, UnknownModelError):
        return grpc.StatusCode.NOT_FOUND, str(error)
    if isinstance(error, TooLargeError | OverloadedError):
        return grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
    if isinstance(error, ProtocolError):
        return grpc.StatusCode.INVALID_ARGUMENT, str(error)
    if isinstance(error, DeadlineError):
        return grpc.StatusCode.DEADLINE_EXCEEDED, str(error)
    if isinstance(error, QuorumError | MemberFailedError):
        return grpc.StatusCode.UNAVAILABLE, str(error)
    logger.error("a gRPC call failed", exc_info=error)
    return grpc.StatusCode.INTERNAL, "internal error; see the server's log"
