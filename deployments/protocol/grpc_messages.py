"""Requests and answers of the protocol over gRPC.

The messages are made from `open_inference.proto` as it was compiled, in a pool of their own: other programs'
generated code for the same package, as clients bring it, does not collide with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from deployments.protocol import datatypes, images
from deployments.protocol import request as checks
from deployments.protocol.datatypes import BYTES, Array, to_bytes
from deployments.protocol.errors import ProtocolError
from deployments.protocol.model import Model
from deployments.protocol.request import Request
from deployments.protocol.rest import Facts

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


def decode(asked: Any, model: Model) -> Request:
    """Read a `ModelInferRequest`.

    Raises:
        ProtocolError: anything that does not match the protocol or the model.
    """
    expected = model.input
    names = checks.check_names([tensor.name for tensor in asked.inputs], "inputs")
    if names != [expected.name]:
        raise ProtocolError(f"the model takes one input, '{expected.name}'", datatypes.short(names))
    tensor = asked.inputs[0]
    datatype = checks.check_datatype(tensor.datatype, expected)
    shape = checks.check_shape(list(tensor.shape), datatype, expected)
    wanted = checks.check_names([output.name for output in asked.outputs], "outputs")
    for name in wanted:
        checks.check_output(name, model)
    return Request(
        rows=_rows(tensor, asked.raw_input_contents, datatype, shape, model),
        outputs=tuple((name, True) for name in wanted or [output.name for output in model.outputs]),
        id=asked.id,
        timeout_s=_timeout_s(asked.parameters),
    )


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
    for tensor in plain["outputs"]:
        tensor.pop("parameters", None)  # gRPC has no place for them
    return _Metadata(**plain)


def _rows(tensor: Any, raw: Any, datatype: str, shape: tuple[int, ...], model: Model) -> Array:
    has_contents = tensor.HasField("contents")
    if len(raw) > 1 or (raw and has_contents):
        raise ProtocolError(
            "raw_input_contents must have one entry for the input, which then has no contents"
        )
    if raw:
        return checks.binary_rows(memoryview(raw[0]), datatype, shape, model.input)
    if not has_contents or datatype not in CONTENTS:
        raise ProtocolError(f"the {datatype} input has no data that can be read", tensor.name)
    filled = [field.name for field, _value in tensor.contents.ListFields()]
    if filled != [CONTENTS[datatype]]:
        raise ProtocolError(f"{datatype} data must be in {CONTENTS[datatype]}", datatypes.short(filled))
    values = list(getattr(tensor.contents, CONTENTS[datatype]))
    if datatype == BYTES:
        if len(values) != shape[0]:
            raise ProtocolError(f"the shape needs {shape[0]} elements, the data has", len(values))
        return images.rows_of(values, model.input)
    return checks.json_rows(values, datatype, shape, model.input)


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
