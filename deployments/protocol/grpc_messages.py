"""Requests and answers of the protocol over gRPC.

The messages are made from `open_inference.proto` as it was compiled, in a pool of their own: other programs'
generated code for the same package, as clients bring it, does not collide with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from deployments.protocol import datatypes, images, raw
from deployments.protocol import request as checks
from deployments.protocol.datatypes import BYTES, Array, to_bytes
from deployments.protocol.errors import ProtocolError, TooLargeError
from deployments.protocol.model import Model
from deployments.protocol.raw import Encoder, Given
from deployments.protocol.request import Request
from deployments.protocol.rest import MAX_JSON_BYTES, Facts

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""Field of `InferTensorContents` for each datatype; the others have only raw bytes."""


def _pool() -> descriptor_pool.DescriptorPool:
    compiled = files("deployments.protocol").joinpath("open_inference.binpb").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled).file:
        pool.Add(file)
    return pool


_POOL = _pool()
METHODS = _POOL.FindServiceByName(SERVICE).methods_by_name


def message(name: str) -> Any:
    """The class of a message, like `ModelInferRequest`."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


_Response = message("ModelInferResponse")
_Metadata = message("ModelMetadataResponse")
_RAW = message("ModelInferRequest").DESCRIPTOR.fields_by_name["raw_input_contents"].number
MAX_PARTS = 65_536
"""Most fields of a message."""


def parse(data: bytes, kind: Any) -> Any:
    """The message of a kind. Numbers and parts take many times their bytes once they are read, so
    all but raw tensors is bounded, as JSON is.

    Raises:
        TooLargeError: it is longer, or has more parts.
        ProtocolError: it is no such message.
    """
    try:
        plain, parts = _beside_raw(data) if len(data) > MAX_PARTS else (0, 0)
        if plain > MAX_JSON_BYTES:
            raise TooLargeError(
                f"a message may have at most {MAX_JSON_BYTES} bytes beside raw_input_contents", plain
            )
        if parts > MAX_PARTS:
            raise TooLargeError(f"a message may have at most {MAX_PARTS} parts")
        return kind.FromString(data)
    except (DecodeError, IndexError) as error:
        raise ProtocolError("the message cannot be read", type(error).__name__) from error


def _beside_raw(data: bytes) -> tuple[int, int]:
    """Bytes of all fields but raw tensors, and how many fields there are; not counted beyond `MAX_PARTS`.

    https://protobuf.dev/programming-guides/encoding/
    """
    place, raw, parts = 0, 0, 0
    while place < len(data) and parts <= MAX_PARTS:
        tag, place = _varint(data, place)
        size = {1: 8, 5: 4}.get(tag & 7, 0)
        if tag & 7 == 2:
            size, place = _varint(data, place)
            raw += size if tag >> 3 == _RAW else 0
        elif tag & 7 == 0:
            _, place = _varint(data, place)
        place, parts = place + size, parts + 1
    return len(data) - raw, parts


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while data[place] & 0x80 and shift < 63:
        value |= (data[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
    return value | data[place] << shift, place + 1


def decode(asked: Any, model: Model, encoder: Encoder | None = None) -> Request:
    """Read a `ModelInferRequest`.

    Args:
        asked: the message.
        model: that is asked.
        encoder: of a model whose clients do not send rows.

    Raises:
        ProtocolError: anything that does not match the protocol or the model.
        DeadlineError: encoding takes longer than an answer may.
    """
    names = checks.check_names([tensor.name for tensor in asked.inputs], "inputs")
    wanted = checks.check_names([output.name for output in asked.outputs], "outputs")
    for name in wanted:
        checks.check_output(name, model)
    outputs = tuple((name, True) for name in wanted or [output.name for output in model.outputs])
    timeout_s = _timeout_s(asked.parameters)
    rows = _rows(asked, names, model) if encoder is None else _encoded(asked, names, encoder)
    return Request(rows, outputs, asked.id, timeout_s, model.encoded_by)


def encode(model: Model, request: Request, values: Mapping[str, Array], facts: Facts) -> Any:
    """A `ModelInferResponse` with the outputs that the request asked for."""
    answer = _Response(model_name=model.name, model_version=model.version, id=request.id or "")
    for name, value in facts.items():
        _set(answer.parameters[name], value)
    for name, _binary in request.outputs:
        datatype = model.tensors[name].datatype
        answer.outputs.add(name=name, datatype=datatype, shape=values[name].shape)
        answer.raw_output_contents.append(to_bytes(datatype, values[name]))
    return answer


def metadata(model: Model) -> Any:
    """A `ModelMetadataResponse`."""
    plain = model.metadata()
    for tensor in (*plain["inputs"], *plain["outputs"]):
        tensor.pop("parameters", None)  # gRPC has no place for them
    return _Metadata(**plain)


def _rows(asked: Any, names: Sequence[str], model: Model) -> Array:
    expected = model.input
    if names != [expected.name]:
        raise ProtocolError(f"the model takes one input, '{expected.name}'", datatypes.short(names))
    tensor = asked.inputs[0]
    datatype = checks.check_datatype(tensor.datatype, expected)
    shape = checks.check_shape(list(tensor.shape), datatype, expected)
    (data,) = _data(asked)
    if data is not None:
        return checks.binary_rows(data, datatype, shape, expected)
    values = _contents(tensor, datatype)
    if datatype == BYTES:
        if len(values) != shape[0]:
            raise ProtocolError(f"the shape needs {shape[0]} elements, the data has", len(values))
        return images.rows_of(values, expected)
    return checks.json_rows(values, datatype, shape, expected)


def _encoded(asked: Any, names: Sequence[str], encoder: Encoder) -> Array:
    encoder.check_inputs(names)
    given = []
    for tensor, data in zip(asked.inputs, _data(asked), strict=True):
        datatype, shape = encoder.check(tensor.name, tensor.datatype, list(tensor.shape))
        if data is not None:
            given.append(raw.from_bytes(tensor.name, datatype, shape, data))
            continue
        values = _contents(tensor, datatype)
        if datatype != BYTES:
            # NaN is a missing value, which JSON has as null.
            values = [None if value != value else value for value in values]
            given.append(raw.from_json(tensor.name, datatype, shape, values))
        elif len(values) != shape[0]:
            raise ProtocolError(f"the shape needs {shape[0]} elements, the data has", len(values))
        else:
            given.append(Given(tensor.name, datatype, shape, values))
    return encoder.rows(given)


def _data(asked: Any) -> list[memoryview | None]:
    """The raw bytes of each input; None where it has contents."""
    found = asked.raw_input_contents
    if not found:
        return [None] * len(asked.inputs)
    if len(found) != len(asked.inputs) or any(tensor.HasField("contents") for tensor in asked.inputs):
        raise ProtocolError("raw_input_contents must have one entry for each input, which have no contents")
    return [memoryview(one) for one in found]


def _contents(tensor: Any, datatype: str) -> list[Any]:
    """The numbers or elements of an input without raw bytes."""
    if not tensor.HasField("contents") or datatype not in CONTENTS:
        raise ProtocolError(f"the {datatype} input has no data that can be read", tensor.name)
    filled = [field.name for field, _value in tensor.contents.ListFields()]
    if filled != [CONTENTS[datatype]]:
        raise ProtocolError(f"{datatype} data must be in {CONTENTS[datatype]}", datatypes.short(filled))
    return list(getattr(tensor.contents, CONTENTS[datatype]))


def _timeout_s(parameters: Any) -> float | None:
    if "timeout" not in parameters:
        return None
    value = getattr(parameters["timeout"], parameters["timeout"].WhichOneof("parameter_choice") or "", None)
    if type(value) is not int or value < 0:
        raise ProtocolError("timeout must be a whole number of microseconds", datatypes.short(value))
    return value / 1e6 if value else None


def _set(parameter: Any, value: str | int | float | bool) -> None:
    field = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
    setattr(parameter, field, value)
