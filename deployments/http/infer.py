"""The inference route, which all the load goes through: no more objects and awaits than it needs."""

from __future__ import annotations

import asyncio
from time import perf_counter_ns

from deployments.exchange import Question
from deployments.front import Entry, Front, maybe_threaded
from deployments.http.asgi import JSON, Headers, Receive, Reply, header_text
from deployments.http.limits import read_body
from deployments.protocol.rest import HEADER_LENGTH, Encoded

_HEADER_LENGTH = HEADER_LENGTH.lower().encode()
_BINARY = (b"content-type", b"application/octet-stream")


async def infer(front: Front, entry: Entry, headers: Headers, receive: Receive) -> Reply:
    """Answer an inference request.

    Raises:
        OrchestratorError: the request, or what became of it.
        DisconnectedError: the client is gone.
    """
    with front.gate:
        start = perf_counter_ns()
        try:
            return await _infer(front, entry, headers, receive, start)
        except BaseException:
            entry.statistics.fail(start)
            raise


async def _infer(front: Front, entry: Entry, headers: Headers, receive: Receive, start: int) -> Reply:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + front.serving.deadline_s
    body = await read_body(headers, receive, front.serving.max_body_bytes, front.serving.deadline_s)
    request = await maybe_threaded(len(body), entry.codec.decode, body, header_text(headers, _HEADER_LENGTH))
    decoded = perf_counter_ns()
    left = deadline - loop.time()
    if request.timeout_s is not None:
        left = min(left, request.timeout_s)
    wanted = frozenset(name for name, _binary in request.outputs)
    identity = request.id or header_text(headers, b"x-request-id") or ""
    answer = await front.ask(entry, Question(request.rows, left, wanted, identity))
    known = perf_counter_ns()
    encoded = await maybe_threaded(len(body), entry.codec.encode, request, answer.outputs, answer.facts())
    entry.statistics.succeed(len(request.rows), (start, decoded, known, perf_counter_ns()))
    return _reply(encoded)


def _reply(encoded: Encoded) -> Reply:
    if encoded.header_length is None:
        return Reply(encoded.body, headers=(JSON,))
    return Reply(encoded.body, headers=(_BINARY, (_HEADER_LENGTH, b"%d" % encoded.header_length)))
