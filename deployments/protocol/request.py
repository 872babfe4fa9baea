"""A decoded request, and what both encodings check of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deployments.protocol import datatypes, images
from deployments.protocol.datatypes import BYTES, DATATYPES, Array, short
from deployments.protocol.errors import ProtocolError, TooLargeError
from deployments.protocol.model import Model, Tensor

MAX_ROWS = 2**31 - 1
MAX_JSON_NUMBERS = 2**20
"""Most numbers of an answer as JSON, some 20 MB of it; a row counts as one, too."""


@dataclass(frozen=True)
class Request:
    """A decoded inference request."""

    rows: Array
    """Of the model's shape and type; may be read-only."""
    outputs: tuple[tuple[str, bool], ...]
    """(name, binary) of each wanted output, in the order of the answer."""
    id: str | None = None
    timeout_s: float | None = None
    """The client's own limit (`parameters.timeout`, in microseconds as Triton has it)."""
    encoded_by: str = ""
    """`Model.encoded_by` of the encoding that made the rows."""


def check_answer(request: Request, model: Model) -> None:
    """The answer is not too long as JSON, which is written while all else waits.

    Raises:
        TooLargeError: it is.
    """
    rows, tensors = len(request.rows), model.tensors
    numbers = sum(math.prod(tensors[name].shape[1:]) for name, binary in request.outputs if not binary)
    if numbers and rows * (numbers + 1) > MAX_JSON_NUMBERS:
        raise TooLargeError(
            f"an answer as JSON may have at most {MAX_JSON_NUMBERS} numbers",
            f"{rows} rows of {numbers}",
            "ask for binary outputs, or send fewer rows",
        )


def check_datatype(value: object, expected: Tensor) -> str:
    """The datatype, if there is such a one and a model with this input can take it.

    Raises:
        ProtocolError: it is not.
    """
    if not isinstance(value, str) or value not in DATATYPES:
        raise ProtocolError(f"datatype must be one of {', '.join(DATATYPES)}", short(value))
    if value == BYTES and not images.takes_images(expected):
        raise ProtocolError("BYTES are image files, but the model's rows are", list(expected.shape[1:]))
    return value


def check_shape(value: object, datatype: str, expected: Tensor) -> tuple[int, ...]:
    """The shape, if it is that of whole rows.

    Raises:
        ProtocolError: it is not.
    """
    if not isinstance(value, list) or any(type(size) is not int for size in value):
        raise ProtocolError("shape must be a list of whole numbers", short(value))
    row = list(expected.shape[1:])
    shapes = ([], [1]) if datatype == BYTES else (row,)
    if value[1:] not in shapes or not value or not 0 < value[0] <= MAX_ROWS:
        wanted = ", ".join(["rows >= 1", *map(str, shapes[0])])
        raise ProtocolError(f"shape must be [{wanted}]", short(value))
    return tuple(value)


def binary_rows(raw: memoryview, datatype: str, shape: tuple[int, ...], expected: Tensor) -> Array:
    """Rows for the model from the bytes of a tensor.

    Raises:
        ProtocolError: the bytes do not fit the shape, or the values not the model.
    """
    if datatype == BYTES:
        return images.rows_of(datatypes.elements(raw, shape[0]), expected)
    return datatypes.fit(datatypes.from_bytes(datatype, raw, shape), datatype, expected.datatype)


def json_rows(data: object, datatype: str, shape: tuple[int, ...], expected: Tensor) -> Array:
    """Rows for the model from the `data` of a tensor.

    Raises:
        ProtocolError: the data does not fit the shape, or the values not the model.
    """
    if datatype == BYTES:
        return images.rows_of(datatypes.strings(data, shape[0]), expected)
    return datatypes.fit(datatypes.from_json(datatype, data, shape), datatype, expected.datatype)


def raw_rows(raw: memoryview, expected: Tensor) -> Array:
    """Rows from the plain bytes of the model's own datatype; their number is what the length says.

    Raises:
        ProtocolError: the bytes are not whole rows, or not finite.
    """
    count, rest = divmod(len(raw), expected.row_bytes)
    if rest or not 0 < count <= MAX_ROWS:
        raise ProtocolError(f"raw data must be rows of {expected.row_bytes} bytes, got", len(raw))
    return binary_rows(raw, expected.datatype, (count, *expected.shape[1:]), expected)


def check_names(names: Sequence[object], what: str) -> list[str]:
    """The names of inputs or outputs, if they are text and differ.

    Raises:
        ProtocolError: they do not.
    """
    found = [name for name in names if isinstance(name, str)]
    if len(found) < len(names):
        raise ProtocolError(
            f"each of {what} needs a name", short(next(n for n in names if not isinstance(n, str)))
        )
    if len(set(found)) < len(found):
        raise ProtocolError(f"{what} has the same name twice", short(found))
    return found


def check_output(name: str, model: Model) -> str:
    """The name of an output that the model has.

    Raises:
        ProtocolError: it has not.
    """
    if name not in model.tensors:
        raise ProtocolError(
            f"{model.name} has no such output", short(name), f"known: {', '.join(model.tensors)}"
        )
    return name
