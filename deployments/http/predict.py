"""`POST /predict`: rows in a plain format, labels and probabilities as JSON."""

from __future__ import annotations

import math
from typing import Any

from deployments.exchange import Answer
from deployments.front import Entry, Front
from deployments.http import stream
from deployments.http.asgi import EventStream, Reply, header_text, json_reply
from deployments.http.respond import respond
from deployments.http.routes import Call
from deployments.protocol import predict as formats
from deployments.protocol import raw_predict
from deployments.protocol.errors import ProtocolError
from deployments.protocol.request import Request, check_names, check_output

QUERIES = frozenset({"model", "outputs", "threshold", "timeout_ms"})


async def predict(front: Front, call: Call) -> Reply | EventStream:
    """Answer rows for the model of the path, of `?model=`, or the only one; as events if those are accepted.

    Raises:
        OrchestratorError: the request, or what became of it.
        DisconnectedError: the client is gone.
    """
    queries = call.queries(QUERIES)
    entry = _entry(front, call, queries.get("model"))
    outputs = tuple((name, False) for name in _outputs(entry, queries.get("outputs", "")))
    timeout_s = _timeout_s(queries.get("timeout_ms"))
    threshold = _threshold(entry, queries.get("threshold"))
    media_type = header_text(call.headers, b"content-type") or ""

    def decode(body: bytes) -> Request:
        encoder = entry.codec.encoder
        if encoder is None:
            rows = formats.read(body, media_type, entry.model.input)
        else:
            rows = raw_predict.read(body, media_type, encoder)
        return Request(rows, outputs, timeout_s=timeout_s, encoded_by=entry.model.encoded_by)

    streaming = stream.wanted(call.headers)

    def encode(request: Request, answer: Answer) -> Reply:
        values = {name: answer.outputs[name] for name, _binary in request.outputs}
        found = formats.answer(entry.model_of(answer), values, answer.facts(), threshold)
        return json_reply(found | ({"final": True} if streaming else {}))

    def encode_stage(answer: Answer) -> dict[str, Any]:
        found = formats.answer(entry.model_of(answer), answer.outputs, answer.facts(), threshold)
        return found | {"final": False}

    async def reply(told: stream.Told | None) -> Reply:
        # Always in a thread: a small file may hold a large image.
        return await respond(
            front,
            entry,
            call.headers,
            call.receive,
            decode,
            encode,
            large_bytes=0,
            version=call.path.get("version", ""),
            told=told,
        )

    return await (stream.events(reply, encode_stage) if streaming else reply(None))


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


def _outputs(entry: Entry, text: str) -> list[str]:
    """The outputs of every answer, and those that are wanted beside them."""
    wanted = check_names([check_output(name, entry.model) for name in text.split(",") if name], "outputs")
    return list(dict.fromkeys([*(output.name for output in entry.model.outputs), *wanted]))


def _threshold(entry: Entry, text: str | None) -> float:
    """The probability above which a label is there."""
    if text is None:
        return formats.THRESHOLD
    if "labels" not in entry.model.tensors:
        raise ProtocolError("only a model of several labels a row takes a threshold", text[:80])
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found <= 1:  # NaN is outside, too
        raise ProtocolError("threshold must be a number from 0 to 1", text[:80])
    return found


def _timeout_s(text: str | None) -> float | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 12 and int(text) > 0):
        raise ProtocolError("timeout_ms must be a whole number above 0", text[:80])
    return int(text) / 1000
