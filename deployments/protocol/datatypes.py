"""The protocol's datatypes: how values stand in JSON and in bytes, and which of them a model takes.

Bytes are little-endian and row-major. BOOL is one byte, BF16 the upper half of an FP32, each element of
BYTES is preceded by its length as four bytes. FP16 and BF16 have no JSON form.

A model takes uint8, int16, int32 or float32. Another datatype is accepted when the values are the same
afterwards: whole numbers of the type's range for the first three; for float32 all but whole numbers past
2^24. FP64 is rounded to float32, as the numbers in JSON are.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from deployments.protocol.errors import ProtocolError

Array = npt.NDArray[Any]

WIRE: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("u1"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
}
"""How elements of a fixed size stand in bytes."""
BYTES = "BYTES"
DATATYPES = (*WIRE, BYTES)
BINARY_ONLY = ("FP16", "BF16")
EXACT = 2**24
"""float32 holds every whole number up to this one."""


def short(value: object) -> str:
    """A value as it may stand in an error."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def from_bytes(datatype: str, raw: memoryview, shape: tuple[int, ...]) -> Array:
    """Numbers of a fixed size; FP32 and UINT8 are not copied unless they must be.

    Raises:
        ProtocolError: another number of bytes than the shape needs, or a BOOL that is neither 0 nor 1.
    """
    wire = WIRE[datatype]
    needed = math.prod(shape) * wire.itemsize
    if len(raw) != needed:
        raise ProtocolError(f"{datatype} of shape {list(shape)} needs {needed} bytes, got", len(raw))
    values = np.frombuffer(raw, wire).reshape(shape)
    if datatype == "BOOL":
        if values.size and values.max() > 1:
            raise ProtocolError("BOOL must be 0 or 1", int(values.max()))
        return values.view(np.bool_)
    if datatype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    # The JSON header before it has any length; compiled code wants whole words.
    return values if values.flags.aligned else values.copy()


def elements(raw: memoryview, count: int) -> list[bytes]:
    """The elements of a BYTES tensor.

    Raises:
        ProtocolError: they do not fill the bytes exactly.
    """
    found: list[bytes] = []
    start = 0
    for _ in range(count):
        if start + 4 > len(raw):
            raise ProtocolError(f"BYTES with {count} elements ends after", len(found))
        (size,) = struct.unpack_from("<I", raw, start)
        start += 4 + size
        if start > len(raw):
            raise ProtocolError("a BYTES element is longer than its tensor", size)
        found.append(bytes(raw[start - size : start]))
    if start != len(raw):
        raise ProtocolError(f"BYTES has {count} elements and bytes behind them", len(raw) - start)
    return found


def from_json(datatype: str, data: object, shape: tuple[int, ...]) -> Array:
    """Numbers from flat or nested lists.

    Raises:
        ProtocolError: another count or nesting than the shape says, or values not of the datatype.
    """
    if datatype in BINARY_ONLY:
        raise ProtocolError("has no form in JSON", datatype, "send it as binary data, or as FP32")
    flat = flatten(data, shape)
    if len(flat) != math.prod(shape):
        raise ProtocolError(f"the shape needs {math.prod(shape)} numbers, the data has", len(flat))
    types = set(map(type, flat))
    if datatype == "BOOL":
        _check_types(datatype, flat, types, (bool,), "true or false")
        return np.array(flat, np.bool_).reshape(shape)
    if datatype in ("FP32", "FP64"):
        _check_types(datatype, flat, types, (int, float), "numbers")
        return _floats(datatype, flat).reshape(shape)
    _check_types(datatype, flat, types, (int,), "whole numbers")
    limits = np.iinfo(WIRE[datatype])
    if flat and (min(flat) < limits.min or max(flat) > limits.max):
        worst = min(flat) if min(flat) < limits.min else max(flat)
        raise ProtocolError(f"{datatype} data must be {limits.min}..{limits.max}", short(worst))
    return np.array(flat, WIRE[datatype]).reshape(shape)


def strings(data: object, count: int) -> list[bytes]:
    """The elements of a BYTES tensor in JSON: text, as UTF-8.

    Raises:
        ProtocolError: something else, or another count.
    """
    flat = flatten(data, (count,))
    _check_types(BYTES, flat, set(map(type, flat)), (str,), "strings")
    if len(flat) != count:
        raise ProtocolError(f"the shape needs {count} strings, the data has", len(flat))
    try:
        return [text.encode() for text in flat]
    except UnicodeEncodeError as error:
        raise ProtocolError("BYTES data must be UTF-8", error.reason) from error


def fit(values: Array, datatype: str, wanted: str) -> Array:
    """The values as a model takes them.

    Args:
        values: as `from_bytes` or `from_json` gave them.
        datatype: what the client called them.
        wanted: the model's.

    Raises:
        ProtocolError: a value would not be the same, or is not finite.
    """
    if wanted != "FP32":
        return _whole(values, datatype, wanted)
    if values.dtype.kind in "iu" and values.dtype.itemsize > 2:
        _between(values, datatype, -EXACT, EXACT, "to be the same as FP32")
    # A value past float32's range becomes infinite.
    with np.errstate(over="ignore"):
        rows = values.astype(np.float32, copy=False)
    if values.dtype.kind == "f" and not np.isfinite(rows).all():
        raise ProtocolError(
            "data must be finite numbers in FP32", short(values[~np.isfinite(rows)][0].item())
        )
    return rows


def to_bytes(datatype: str, values: Array) -> bytes:
    """An output's bytes; the values have the datatype's kind."""
    return np.ascontiguousarray(values, dtype=WIRE[datatype]).tobytes()


def _whole(values: Array, datatype: str, wanted: str) -> Array:
    if datatype == wanted:
        return values
    if values.dtype.kind == "f" and not (values == np.floor(values)).all():
        odd = values[values != np.floor(values)][0].item()
        raise ProtocolError(f"{datatype} data must be whole numbers for a {wanted} model", short(odd))
    if values.dtype.kind != "b":
        limits = np.iinfo(WIRE[wanted])
        _between(values, datatype, int(limits.min), int(limits.max), f"for a {wanted} model")
    return values.astype(WIRE[wanted])


def _between(values: Array, datatype: str, low: int, high: int, why: str) -> None:
    if not values.size:
        return
    # Python compares exactly, where numpy rounds a bound to the values' own type first.
    least, most = values.min().item(), values.max().item()
    if least < low or most > high:
        raise ProtocolError(
            f"{datatype} data must be {low}..{high} {why}", short(least if least < low else most)
        )


def _floats(datatype: str, flat: list[Any]) -> Array:
    try:
        wide = np.array(flat, np.float64)
    except OverflowError as error:
        raise ProtocolError(f"{datatype} data must fit a 64-bit float", short(max(flat, key=abs))) from error
    # JSON has no infinity, but 1e999 reads as one.
    if not np.isfinite(wide).all():
        raise ProtocolError("data must be finite numbers", short(wide[~np.isfinite(wide)][0].item()))
    return wide


def flatten(data: object, shape: tuple[int, ...]) -> list[Any]:
    """The values of flat or nested data; nested lists must have the lengths that `shape` says."""
    if not isinstance(data, list):
        raise ProtocolError("data must be a list", short(data))
    if list not in set(map(type, data)):
        return data
    level: list[Any] = [data]
    for axis, size in enumerate(shape):
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            raise ProtocolError(f"nested data does not have the shape {list(shape)} at axis", axis)
        level = list(itertools.chain.from_iterable(level))
    return level


def _check_types(
    datatype: str, flat: list[Any], found: set[type], allowed: tuple[type, ...], what: str
) -> None:
    if not found <= set(allowed):
        odd = next(value for value in flat if type(value) not in allowed)
        raise ProtocolError(f"{datatype} data must be {what}", short(odd))
