"""Requests and answers of the protocol over HTTP.

Tensors come as JSON (nested, or flat in row-major order) or by the binary tensor data extension, which
`tritonclient` uses unless told otherwise: JSON header, then the raw little-endian tensors in the order of
`inputs`.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deployments.protocol.errors import ProtocolError
from deployments.protocol.model import Model, Tensor

EXTENSIONS = ("binary_tensor_data", "model_repository")
HEADER_LENGTH = "Inference-Header-Content-Length"
NUMPY: Mapping[str, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"),
    "INT64": np.dtype("<i8"),
    "FP32": np.dtype("<f4"),
}


@dataclass(frozen=True)
class Request:
    """A decoded inference request."""

    rows: np.ndarray
    """uint8 [B, C, H, W] or float32 [B, F]; may be read-only."""
    outputs: tuple[tuple[str, bool], ...]
    """(name, binary) of each wanted output, in the order of the answer."""
    id: str | None = None
    timeout_s: float | None = None
    """The client's own limit (`parameters.timeout`, in microseconds as Triton has it)."""


@dataclass(frozen=True)
class Reply:
    body: bytes
    headers: dict[str, str]


def to_json(value: object) -> bytes:
    """ASCII JSON, so that any text a client sent can be sent back; NaN is never written."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def decode(body: bytes, header_length: str | None, model: Model) -> Request:
    """Read the body of an inference request.

    Args:
        body: JSON, or a JSON header with binary tensors behind it.
        header_length: the `Inference-Header-Content-Length` header, if there is one.
        model: what the request must match.

    Raises:
        ProtocolError: anything that does not match the protocol or the model.
    """
    split = _header_length(header_length, len(body))
    request = _object(_parse(body[:split]), "the request")
    parameters = _object(request.get("parameters", {}), "parameters")
    identity = request.get("id")
    if identity is not None and not isinstance(identity, str):
        raise ProtocolError("id must be a string", _short(identity))
    return Request(
        rows=_input(request.get("inputs"), memoryview(body)[split:], model.input),
        outputs=_outputs(request.get("outputs"), _flag(parameters, "binary_data_output", False), model),
        id=identity,
        timeout_s=_timeout(parameters),
    )


def encode(
    model: Model,
    request: Request,
    values: Mapping[str, np.ndarray],
    parameters: Mapping[str, str | int | float | bool],
) -> Reply:
    """Write an answer with the outputs that the request asked for.

    Args:
        model: the model that answered.
        request: the request that is answered.
        values: array of each output's datatype and shape.
        parameters: facts about the answer.
    """
    tensors = {output.name: output for output in model.outputs}
    outputs: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, binary in request.outputs:
        value = np.ascontiguousarray(values[name], dtype=NUMPY[tensors[name].datatype])
        output: dict[str, Any] = {
            "name": name,
            "datatype": tensors[name].datatype,
            "shape": list(value.shape),
        }
        if binary:
            raw.append(value.tobytes())
            output["parameters"] = {"binary_data_size": value.nbytes}
        else:
            output["data"] = value.ravel().tolist()
        outputs.append(output)
    answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if request.id is not None:
        answer["id"] = request.id
    header = to_json(answer | {"parameters": dict(parameters), "outputs": outputs})
    if not raw:
        return Reply(header, {"Content-Type": "application/json"})
    return Reply(
        b"".join([header, *raw]),
        {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))},
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _header_length(text: str | None, total: int) -> int:
    if text is None:
        return total
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise ProtocolError(f"{HEADER_LENGTH} must be a whole number", _short(text))
    length = int(digits)
    if length == 0:
        raise ProtocolError("raw binary requests are not supported", None, "send the JSON header with it")
    if length > total:
        raise ProtocolError(f"{HEADER_LENGTH} is more than the body's {total} bytes", length)
    return length


def _parse(text: bytes) -> object:
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ProtocolError("the body is not valid JSON", reason) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError(f"{what} must be a JSON object", _short(value))
    return value


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise ProtocolError(f"{name} must be true or false", _short(value))
    return value


def _timeout(parameters: Mapping[str, Any]) -> float | None:
    value = parameters.get("timeout", 0)
    if type(value) is not int or not 0 <= value < 2**63:
        raise ProtocolError("timeout must be a whole number of microseconds", _short(value))
    return value / 1e6 if value else None


def _named(value: object, what: str) -> list[dict[str, Any]]:
    """A list of objects with different names."""
    if not isinstance(value, list):
        raise ProtocolError(f"{what} must be a list", _short(value))
    found = [_object(item, f"each of {what}") for item in value]
    names = [item.get("name") for item in found]
    for name in names:
        if not isinstance(name, str):
            raise ProtocolError(f"each of {what} needs a name", _short(name))
    if len(set(names)) < len(names):
        raise ProtocolError(f"{what} has the same name twice", _short(names))
    return found


def _outputs(value: object, binary: bool, model: Model) -> tuple[tuple[str, bool], ...]:
    known = [output.name for output in model.outputs]
    if value is None or value == []:
        return tuple((name, binary) for name in known)
    wanted = []
    for item in _named(value, "outputs"):
        if item["name"] not in known:
            raise ProtocolError(
                f"{model.name} has no such output", _short(item["name"]), f"known: {', '.join(known)}"
            )
        parameters = _object(item.get("parameters", {}), "parameters of an output")
        unknown = sorted(set(parameters) - {"binary_data"})
        if unknown:
            raise ProtocolError("output parameter is not supported", _short(unknown[0]))
        wanted.append((item["name"], _flag(parameters, "binary_data", binary)))
    return tuple(wanted)


def _input(value: object, binary: memoryview, expected: Tensor) -> np.ndarray:
    inputs = _named(value, "inputs")
    names = [item["name"] for item in inputs]
    if names != [expected.name]:
        raise ProtocolError(f"the model takes one input, '{expected.name}'", _short(names))
    tensor = inputs[0]
    if tensor.get("datatype") != expected.datatype:
        raise ProtocolError(f"datatype must be {expected.datatype}", _short(tensor.get("datatype")))
    shape = _shape(tensor.get("shape"), expected)
    parameters = _object(tensor.get("parameters", {}), "parameters of an input")
    size = parameters.get("binary_data_size")
    if size is None:
        if len(binary):
            raise ProtocolError("bytes after the JSON header that no input claims", len(binary))
        if "data" not in tensor:
            raise ProtocolError("the input has no data", expected.name)
        return _from_json(tensor["data"], shape, expected.datatype)
    if "data" in tensor:
        raise ProtocolError("the input has both data and binary_data_size", expected.name)
    return _from_bytes(size, binary, shape, expected.datatype)


def _shape(value: object, expected: Tensor) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(size) is not int for size in value):
        raise ProtocolError("shape must be a list of whole numbers", _short(value))
    row = expected.shape[1:]
    if len(value) != len(expected.shape) or tuple(value[1:]) != row or not 0 < value[0] < 2**31:
        raise ProtocolError(f"shape must be {['rows >= 1', *row]}".replace("'", ""), _short(value))
    return tuple(value)


def _from_bytes(size: object, binary: memoryview, shape: tuple[int, ...], datatype: str) -> np.ndarray:
    needed = math.prod(shape) * NUMPY[datatype].itemsize
    if type(size) is not int or size != needed:
        raise ProtocolError(f"binary_data_size must be {needed} for this shape", _short(size))
    if len(binary) != size:
        raise ProtocolError(f"the body has {len(binary)} bytes behind its header, not binary_data_size", size)
    rows = np.frombuffer(binary, dtype=NUMPY[datatype]).reshape(shape)
    return _finite(rows)


def _from_json(data: object, shape: tuple[int, ...], datatype: str) -> np.ndarray:
    flat = _flatten(data, shape)
    if len(flat) != math.prod(shape):
        raise ProtocolError(f"the shape needs {math.prod(shape)} numbers, the data has", len(flat))
    types = set(map(type, flat))
    if datatype == "UINT8":
        if types != {int}:
            raise ProtocolError("UINT8 data must be whole numbers", _odd(flat, (int,)))
        if min(flat) < 0 or max(flat) > 255:
            raise ProtocolError(
                "UINT8 data must be 0..255", _short(min(flat) if min(flat) < 0 else max(flat))
            )
        return np.array(flat, dtype=np.uint8).reshape(shape)
    if not types <= {int, float}:
        raise ProtocolError("FP32 data must be numbers", _odd(flat, (int, float)))
    try:
        wide = np.array(flat, dtype=np.float64)
    except OverflowError as error:
        raise ProtocolError("FP32 data must fit a 32-bit float", _short(max(flat, key=abs))) from error
    # JSON has no infinity, but 1e999 reads as one; a value past float32's range would become one.
    with np.errstate(over="ignore"):
        return _finite(wide.astype(np.float32).reshape(shape))


def _flatten(data: object, shape: tuple[int, ...]) -> list[Any]:
    """The numbers of flat or nested data; nested lists must have the lengths that `shape` says."""
    if not isinstance(data, list):
        raise ProtocolError("data must be a list", _short(data))
    if list not in set(map(type, data)):
        return data
    level: list[Any] = [data]
    for axis, size in enumerate(shape):
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            raise ProtocolError(f"nested data does not have the shape {list(shape)} at axis", axis)
        level = list(itertools.chain.from_iterable(level))
    return level


def _odd(flat: list[Any], allowed: tuple[type, ...]) -> str:
    return _short(next(value for value in flat if type(value) not in allowed))


def _finite(rows: np.ndarray) -> np.ndarray:
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise ProtocolError("data must be finite numbers", _short(rows[~np.isfinite(rows)][0].item()))
    return rows
