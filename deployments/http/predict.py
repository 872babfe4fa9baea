"""`POST /predict`: rows in a plain format, labels and probabilities as JSON."""

from __future__ import annotations

import asyncio
from time import perf_counter_ns

from deployments.exchange import Question
from deployments.front import Entry, Front
from deployments.http.asgi import Reply, header_text, json_reply
from deployments.http.limits import read_body
from deployments.http.routes import Call
from deployments.protocol import predict as formats
from deployments.protocol.errors import ProtocolError
from deployments.protocol.request import check_names, check_output

QUERIES = frozenset({"model", "outputs", "timeout_ms"})


async def predict(front: Front, call: Call) -> Reply:
    """Answer rows for the model of the path, of `?model=`, or the only one.

    Raises:
        OrchestratorError: the request, or what became of it.
        DisconnectedError: the client is gone.
    """
    queries = call.queries(QUERIES)
    entry = _entry(front, call, queries.get("model"))
    extras = _extras(entry, queries.get("outputs", ""))
    limit_s = min(front.serving.deadline_s, _timeout_s(queries.get("timeout_ms")))
    with front.gate:
        start = perf_counter_ns()
        try:
            return await _predict(front, entry, call, extras, limit_s)
        except BaseException:
            entry.statistics.fail(start)
            raise


async def _predict(front: Front, entry: Entry, call: Call, extras: list[str], limit_s: float) -> Reply:
    start = perf_counter_ns()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    body = await read_body(call.headers, call.receive, front.serving.max_body_bytes, limit_s)
    media_type = header_text(call.headers, b"content-type") or ""
    # Always in a thread: a small file may hold a large image.
    rows = await asyncio.to_thread(formats.read, body, media_type, entry.model.input)
    decoded = perf_counter_ns()
    names = [*(output.name for output in entry.model.outputs), *extras]
    identity = header_text(call.headers, b"x-request-id") or ""
    question = Question(rows, deadline - loop.time(), frozenset(names), identity)
    answer = await front.ask(entry, question)
    known = perf_counter_ns()
    values = {name: answer.outputs[name] for name in names}
    reply = json_reply(await asyncio.to_thread(formats.answer, entry.model, values, answer.facts()))
    entry.statistics.succeed(len(rows), (start, decoded, known, perf_counter_ns()))
    return reply


def _entry(front: Front, call: Call, named: str | None) -> Entry:
    in_path = call.path.get("model")
    if in_path is not None and named is not None:
        raise ProtocolError("the path names the model already", named[:80])
    name = in_path if named is None else named
    if name is None:
        if len(front.entries) > 1:
            raise ProtocolError(
                "several models are served", None, f"name one with ?model=, of {', '.join(front.entries)}"
            )
        name = next(iter(front.entries))
    return front.find(name, call.path.get("version"))


def _extras(entry: Entry, text: str) -> list[str]:
    """The outputs that are wanted beside those of every answer."""
    wanted = check_names([check_output(name, entry.model) for name in text.split(",") if name], "outputs")
    always = {output.name for output in entry.model.outputs}
    return [name for name in wanted if name not in always]


def _timeout_s(text: str | None) -> float:
    if text is None:
        return float("inf")
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 12 and int(text) > 0):
        raise ProtocolError("timeout_ms must be a whole number above 0", text[:80])
    return int(text) / 1000
