"""From the body of a request to the reply, for every route that asks an ensemble."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter_ns

from deployments.exchange import Answer, Question
from deployments.front import Entry, Front, check_given, in_thread
from deployments.http.asgi import Headers, Receive, Reply, header_text
from deployments.http.errors import SlowBodyError
from deployments.http.limits import read_body
from deployments.observe.requests import CURRENT
from deployments.protocol.request import Request, check_answer
from orchestrator.errors import DeadlineError

Decode = Callable[[bytes], Request]
Encode = Callable[[Request, Answer], Reply]


async def respond(
    front: Front,
    entry: Entry,
    headers: Headers,
    receive: Receive,
    decode: Decode,
    encode: Encode,
    *,
    large_bytes: int,
    takes_long: Callable[[bytes], bool] | None = None,
    version: str = "",
    told: Callable[[Answer], None] | None = None,
) -> Reply:
    """The reply; bodies of `large_bytes`, or that `takes_long`, are decoded and answered in a thread.

    Where a `version` is given no other answers. `told` is called with what the stages of a cascade say.

    Raises:
        OrchestratorError: the request, or what became of it.
        DisconnectedError: the client is gone.
    """
    with front.gate, front.bodies.room() as take:
        start = perf_counter_ns()
        body = None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + front.serving.deadline_s
        try:
            async with asyncio.timeout_at(deadline) as limit:
                body = await read_body(headers, receive, front.serving.max_body_bytes, take)
                threaded = len(body) >= large_bytes or (takes_long is not None and takes_long(body))
                request = await in_thread(decode, body) if threaded else decode(body)
                if request.timeout_s is not None:
                    deadline = min(deadline, loop.time() + request.timeout_s)
                    limit.reschedule(deadline)
            decoded = perf_counter_ns()
            question = _question(entry, request, headers, deadline - loop.time())
            if version or told is not None:
                question = replace(question, version=version, told=told)
            answer = await entry.served.predict(question)
            check_given(answer, question.outputs)
            known = perf_counter_ns()
            if threaded:
                async with asyncio.timeout_at(deadline):
                    reply = await in_thread(encode, request, answer)
            else:
                reply = encode(request, answer)
        except TimeoutError as error:
            entry.statistics.fail(start)
            if body is None:
                raise SlowBodyError(
                    "the body did not arrive in time", f"{front.serving.deadline_s:g} s"
                ) from error
            raise DeadlineError(
                "the body was not decoded, or the answer not encoded, in time", entry.model.name
            ) from error
        except BaseException:
            entry.statistics.fail(start)
            raise
        entry.statistics.succeed(len(request.rows), (start, decoded, known, perf_counter_ns()))
        return reply


def _question(entry: Entry, request: Request, headers: Headers, timeout_s: float) -> Question:
    check_answer(request, entry.model)
    wanted = frozenset([name for name, _binary in request.outputs])
    record = CURRENT.get()
    identity = request.id or (header_text(headers, b"x-request-id") or "" if record is None else record.id)
    if not identity.isascii():
        # JSON may have half a character, which has no bytes: who draws lots by the id needs them.
        identity = identity.encode("utf-8", "backslashreplace").decode()
    return Question(request.rows, timeout_s, wanted, identity, request.encoded_by)
