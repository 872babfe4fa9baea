"""Requests and answers of the protocol over HTTP.

Tensors come as JSON (nested, or flat in row-major order) or by the binary tensor data extension, which
`tritonclient` uses unless told otherwise: JSON header, then the raw little-endian tensors in the order of
`inputs`.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from deployments.protocol import raw
from deployments.protocol import request as checks
from deployments.protocol.datatypes import Array, short, to_bytes
from deployments.protocol.errors import ProtocolError, TooLargeError
from deployments.protocol.model import Model
from deployments.protocol.raw import Encoder, Given
from deployments.protocol.request import Request
from orchestrator.config.serving import ServingSettings

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
HEADER_LENGTH = "Inference-Header-Content-Length"
REMEMBERED = 256
"""JSON headers of binary requests and answers that are kept: a client sends the same again and again."""
LONGEST_REMEMBERED = 4096
MAX_JSON_BYTES = 8 * 2**20
"""Longest JSON. Reading it keeps the interpreter's lock, so all else waits, and a list of empty ones takes
20 times its bytes."""

Facts = Mapping[str, str | int | float | bool]
Outputs = tuple[tuple[str, bool], ...]
_HOLE = b'"data":null'
_compact = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True)
class Encoded:
    """The body of an answer."""

    body: bytes
    header_length: int | None
    """Length of the JSON before binary tensors; None when all is JSON."""


@dataclass(frozen=True)
class _Head:
    """A request without its values."""

    datatype: str
    shape: tuple[int, ...]
    size: int | None
    """`binary_data_size`; None when the values are JSON."""
    outputs: Outputs
    id: str | None
    timeout_s: float | None


def to_json(value: object) -> bytes:
    """ASCII JSON, so that any text a client sent can be sent back; NaN is never written."""
    return _compact(value).encode("ascii")


@dataclass(frozen=True)
class _About:
    """A request but for its inputs."""

    outputs: Outputs
    id: str | None
    timeout_s: float | None


def codec_of(model: Model, serving: ServingSettings) -> Codec:
    """The codec for a model's inputs."""
    return Codec(model) if model.encoding is None else EncodedCodec(model, Encoder(model, serving))


class Codec:
    """Reads the requests for a model and writes its answers."""

    encoder: Encoder | None = None
    """Makes rows of what clients send, where that is not rows already."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._all_binary = tuple((output.name, True) for output in model.outputs)
        self._start = _start(model, model.version)
        self._remembered = lru_cache(REMEMBERED)(self._binary_head)
        self._ending = lru_cache(REMEMBERED)(self._parts_of_ending)

    def decode(self, body: bytes, header_length: str | None) -> Request:
        """Read the body of an inference request.

        Args:
            body: JSON, or a JSON header with binary tensors behind it; or the bare tensor.
            header_length: the `Inference-Header-Content-Length` header, if there is one; 0 says that the
                tensor is bare.

        Raises:
            ProtocolError: anything that does not match the protocol or the model.
        """
        split = _header_length(header_length, len(body))
        expected = self._model.input
        if split == 0 and header_length is not None:
            return Request(checks.raw_rows(memoryview(body), expected), self._all_binary)
        if split == len(body):
            head, data = self._head(body)
            if head.size is None:
                rows = checks.json_rows(data, head.datatype, head.shape, expected)
                return Request(rows, head.outputs, head.id, head.timeout_s)
        else:
            head = (self._remembered if split <= LONGEST_REMEMBERED else self._binary_head)(body[:split])
        binary = memoryview(body)[split:]
        if head.size != len(binary):
            raise ProtocolError(
                f"the body has {len(binary)} bytes behind its header, not binary_data_size", head.size
            )
        rows = checks.binary_rows(binary, head.datatype, head.shape, expected)
        return Request(rows, head.outputs, head.id, head.timeout_s)

    def encode(
        self, request: Request, values: Mapping[str, Array], facts: Facts, version: str = ""
    ) -> Encoded:
        """Write an answer with the outputs that the request asked for.

        Args:
            request: the request that is answered.
            values: array of each output's shape.
            facts: about the answer: its `parameters`.
            version: that answered; the model's own when empty.
        """
        start = self._start if version in ("", self._model.version) else _start(self._model, version)
        if request.id is not None:
            start += b',"id":' + to_json(request.id)
        shapes = tuple([values[name].shape for name, _binary in request.outputs])
        first, *rest = self._ending(request.outputs, shapes, tuple(facts.items()))
        header = [start, first]
        plain = [name for name, binary in request.outputs if not binary]
        for name, text in zip(plain, rest, strict=True):
            header += [_json_values(values[name]), text]
        raw = [self._bytes(name, values[name]) for name, binary in request.outputs if binary]
        length = sum(map(len, header)) if raw else None
        return Encoded(b"".join([*header, *raw]), length)

    def _bytes(self, name: str, values: Array) -> bytes:
        return to_bytes(self._model.tensors[name].datatype, values)

    def _parts_of_ending(
        self, outputs: Outputs, shapes: tuple[tuple[int, ...], ...], facts: tuple[tuple[str, Any], ...]
    ) -> list[bytes]:
        """The JSON of an answer from its parameters on, cut where the values of each JSON output belong."""
        tensors = []
        for (name, binary), shape in zip(outputs, shapes, strict=True):
            tensor = self._model.tensors[name]
            plain: dict[str, Any] = {"name": name, "datatype": tensor.datatype, "shape": list(shape)}
            if binary:
                plain["parameters"] = {"binary_data_size": tensor.bytes_of(shape)}
            else:
                plain["data"] = None
            tensors.append(plain)
        text = b"," + to_json({"parameters": dict(facts), "outputs": tensors})[1:]
        # No text can hold it: quotes within one are escaped.
        *before, last = text.split(_HOLE)
        return [*(part + b'"data":' for part in before), last]

    def _binary_head(self, text: bytes) -> _Head:
        head, _data = self._head(text)
        if head.size is None:
            raise ProtocolError("there are bytes after the JSON header that no input claims")
        return head

    def _head(self, text: bytes) -> tuple[_Head, object]:
        """A request and, if they are JSON, its values."""
        request = _object(parse(text), "the request")
        about = self._about(request)
        tensor = self._input(request.get("inputs"))
        expected = self._model.input
        datatype = checks.check_datatype(tensor.get("datatype"), expected)
        shape = checks.check_shape(tensor.get("shape"), datatype, expected)
        size = _binary_size(tensor, expected.name)
        head = _Head(datatype, shape, size, about.outputs, about.id, about.timeout_s)
        return head, tensor.get("data")

    def _about(self, request: Mapping[str, Any]) -> _About:
        parameters = _object(request.get("parameters", {}), "parameters")
        identity = request.get("id")
        if identity is not None and not isinstance(identity, str):
            raise ProtocolError("id must be a string", short(identity))
        binary = _flag(parameters, "binary_data_output", False)
        return _About(self._outputs(request.get("outputs"), binary), identity, _timeout(parameters))

    def _input(self, value: object) -> dict[str, Any]:
        inputs = _named(value, "inputs")
        names = [item["name"] for item in inputs]
        if names != [self._model.input.name]:
            raise ProtocolError(f"the model takes one input, '{self._model.input.name}'", short(names))
        return inputs[0]

    def _outputs(self, value: object, binary: bool) -> Outputs:
        if value is None or value == []:
            return tuple((output.name, binary) for output in self._model.outputs)
        wanted = []
        for item in _named(value, "outputs"):
            name = checks.check_output(item["name"], self._model)
            parameters = _object(item.get("parameters", {}), "parameters of an output")
            unknown = sorted(set(parameters) - {"binary_data"})
            if unknown:
                raise ProtocolError("output parameter is not supported", short(unknown[0]))
            wanted.append((name, _flag(parameters, "binary_data", binary)))
        return tuple(wanted)


class EncodedCodec(Codec):
    """The same for a model whose clients send text, sound or named columns.

    Args:
        model: with an encoding.
        encoder: of the model.
    """

    encoder: Encoder

    def __init__(self, model: Model, encoder: Encoder) -> None:
        super().__init__(model)
        self.encoder = encoder

    def decode(self, body: bytes, header_length: str | None) -> Request:
        """As `Codec.decode`; a bare body is one text or one file.

        Raises:
            ProtocolError: anything that does not match the protocol or the model.
            DeadlineError: encoding takes longer than an answer may.
        """
        split = _header_length(header_length, len(body))
        if split == 0 and header_length is not None:
            return Request(self.encoder.bare(body), self._all_binary, encoded_by=self._model.encoded_by)
        request = _object(parse(body[:split]), "the request")
        about = self._about(request)
        tensors = _named(request.get("inputs"), "inputs")
        self.encoder.check_inputs([tensor["name"] for tensor in tensors])
        rest = memoryview(body)[split:]
        given = []
        for tensor in tensors:
            one, size = self._given(tensor, rest)
            given.append(one)
            rest = rest[size:]
        if len(rest):
            raise ProtocolError("there are bytes after the JSON header that no input claims", len(rest))
        rows = self.encoder.rows(given)
        return Request(rows, about.outputs, about.id, about.timeout_s, self._model.encoded_by)

    def _given(self, tensor: Mapping[str, Any], rest: memoryview) -> tuple[Given, int]:
        """An input, and how many of the bytes behind the header are its own."""
        name = tensor["name"]
        datatype, shape = self.encoder.check(name, tensor.get("datatype"), tensor.get("shape"))
        size = _binary_size(tensor, name)
        if size is None:
            return raw.from_json(name, datatype, shape, tensor["data"]), 0
        if size > len(rest):
            raise ProtocolError(f"binary_data_size of '{name}' is more than the bytes that are left", size)
        return raw.from_bytes(name, datatype, shape, rest[:size]), size


def only_ready(body: bytes) -> bool:
    """Whether a question for the index of models is for those that are ready.

    Raises:
        ProtocolError: it is no such question.
    """
    return _flag(_object(parse(body or b"{}"), "the request"), "ready", False)


def parse(text: bytes) -> object:
    """Strict JSON.

    Raises:
        ProtocolError: it is none.
        TooLargeError: it is longer than `MAX_JSON_BYTES`.
    """
    if len(text) > MAX_JSON_BYTES:
        raise TooLargeError(
            f"JSON may have at most {MAX_JSON_BYTES} bytes", len(text), "send binary data, or fewer rows"
        )
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ProtocolError("the body is not valid JSON", reason) from error


def is_json(body: bytes) -> bool:
    """Whether a body that says nothing of its type is JSON."""
    if len(body) > MAX_JSON_BYTES or body.lstrip(b" \t\r\n")[:1] not in (b"{", b"["):
        return False
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def _json_values(values: Array) -> bytes:
    """A flat JSON list of numbers or truth values, as `to_json` writes it.

    Raises:
        ValueError: NaN or infinity, which JSON has not.
    """
    if values.dtype.kind == "b":
        return to_json(values.ravel().tolist())
    text = ",".join(map(repr, values.ravel().tolist()))
    if "n" in text:
        raise ValueError(text[:80])
    return f"[{text}]".encode("ascii")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _header_length(text: str | None, total: int) -> int:
    if text is None:
        return total
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise ProtocolError(f"{HEADER_LENGTH} must be a whole number", short(text))
    length = int(digits)
    if length > total:
        raise ProtocolError(f"{HEADER_LENGTH} is more than the body's {total} bytes", length)
    return length


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError(f"{what} must be a JSON object", short(value))
    return value


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise ProtocolError(f"{name} must be true or false", short(value))
    return value


def _binary_size(tensor: Mapping[str, Any], name: str) -> int | None:
    """Bytes of an input behind the header; None when its data is JSON."""
    size = _object(tensor.get("parameters", {}), "parameters of an input").get("binary_data_size")
    if size is None and "data" not in tensor:
        raise ProtocolError("the input has no data", name)
    if size is not None and "data" in tensor:
        raise ProtocolError("the input has both data and binary_data_size", name)
    if size is not None and (type(size) is not int or size < 0):
        raise ProtocolError("binary_data_size must be a whole number", short(size))
    return size


def _timeout(parameters: Mapping[str, Any]) -> float | None:
    value = parameters.get("timeout", 0)
    if type(value) is not int or not 0 <= value < 2**63:
        raise ProtocolError("timeout must be a whole number of microseconds", short(value))
    return value / 1e6 if value else None


def _named(value: object, what: str) -> list[dict[str, Any]]:
    """A list of objects with different names."""
    if not isinstance(value, list):
        raise ProtocolError(f"{what} must be a list", short(value))
    found = [_object(item, f"each of {what}") for item in value]
    checks.check_names([item.get("name") for item in found], what)
    return found


def _start(model: Model, version: str) -> bytes:
    """The JSON of an answer up to its id."""
    return to_json({"model_name": model.name, "model_version": version})[:-1]
