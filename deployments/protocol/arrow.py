"""Rows from an Arrow IPC stream that a client sent.

https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from deployments.protocol import images
from deployments.protocol.datatypes import Array, fit
from deployments.protocol.errors import ProtocolError, UnsupportedEncodingError
from deployments.protocol.model import Tensor

NUMBERS: Mapping[pa.DataType, str] = {
    pa.uint8(): "UINT8",
    pa.uint16(): "UINT16",
    pa.uint32(): "UINT32",
    pa.uint64(): "UINT64",
    pa.int8(): "INT8",
    pa.int16(): "INT16",
    pa.int32(): "INT32",
    pa.int64(): "INT64",
    pa.float16(): "FP16",
    pa.float32(): "FP32",
    pa.float64(): "FP64",
}
_CONTINUATION = b"\xff\xff\xff\xff"


def is_stream(data: bytes) -> bool:
    """Whether the bytes begin like a stream."""
    return data.startswith(_CONTINUATION)


def read(body: bytes, expected: Tensor) -> Array:
    """Rows from one column of fixed-size lists or tensors, one of image files, or a column for each feature.

    Raises:
        ProtocolError: it is not a stream, or does not fit the model.
        UnsupportedEncodingError: its buffers are compressed.
    """
    batches = batches_of(body, lambda schema: _check_schema(schema, expected))
    if any(column.null_count for batch in batches for column in batch.columns):
        raise ProtocolError("the Arrow stream has rows without a value")
    if _storage(batches[0].schema.types[0]) in (pa.binary(), pa.large_binary()):
        return _images(batches, expected)
    return np.concatenate([_rows(batch, expected) for batch in batches if batch.num_rows])


def batches_of(body: bytes, check: Callable[[pa.Schema], None]) -> list[pa.RecordBatch]:
    """The batches of a stream, in which there is at least one row.

    Args:
        body: the stream.
        check: refuses a schema, before any row is made.

    Raises:
        ProtocolError: it is not a stream, or has no rows.
        UnsupportedEncodingError: its buffers are compressed.
    """
    try:
        _check_messages(body)
        with pa.ipc.open_stream(body) as reader:
            check(reader.schema)
            batches = list(reader)
            for batch in batches:
                batch.validate(full=True)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise ProtocolError("the Arrow stream cannot be read", str(error).splitlines()[0][:80]) from error
    rows = sum(batch.num_rows for batch in batches)
    if not rows:
        raise ProtocolError("the Arrow stream has no rows")
    _check_size(batches, rows, len(body))
    return batches


def _check_size(batches: Sequence[pa.RecordBatch], rows: int, length: int) -> None:
    """A short stream may say that it is a long one: several columns of the same bytes, which Arrow allows,
    and columns of nulls, which have none."""
    size = sum(batch.nbytes for batch in batches)
    if size > length:
        raise ProtocolError(f"columns of an Arrow stream of {length} bytes must not share bytes", size)
    if rows > 8 * length:
        raise ProtocolError(f"an Arrow stream of {length} bytes must have a bit at least for each row", rows)


def _check_messages(body: bytes) -> None:
    """Refuse what the reader would act on before anyone could look at it: dictionaries, and compressed
    buffers, which may become huge."""
    for message in _messages(body):
        if message.type not in ("schema", "record batch"):
            raise ProtocolError("the Arrow stream may have plain columns only, not a", message.type)
        if message.type == "record batch" and _is_compressed(memoryview(message.metadata)):
            raise UnsupportedEncodingError("compressed Arrow buffers are not supported")


def _messages(body: bytes) -> Iterator[pa.ipc.Message]:
    reader = pa.ipc.MessageReader.open_stream(body)
    while True:
        try:
            yield reader.read_next_message()
        except StopIteration:
            return


def _is_compressed(metadata: memoryview) -> bool:
    """Whether a record batch's flatbuffer has the field `compression`, the fourth; Arrow has verified it.

    https://github.com/apache/arrow/blob/main/format/Message.fbs
    """
    message = struct.unpack_from("<I", metadata, 0)[0]
    batch = _field(metadata, message, 2)
    if batch is None:
        return False
    batch += struct.unpack_from("<I", metadata, batch)[0]
    return _field(metadata, batch, 3) is not None


def _field(metadata: memoryview, table: int, index: int) -> int | None:
    """Where a field of a flatbuffer's table stands."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    if 4 + 2 * index >= struct.unpack_from("<H", metadata, vtable)[0]:
        return None
    offset = struct.unpack_from("<H", metadata, vtable + 4 + 2 * index)[0]
    return table + offset if offset else None


def _check_schema(schema: pa.Schema, expected: Tensor) -> None:
    """Before any row is made: the type says how large rows are."""
    row = expected.shape[1:]
    if len(row) == 1 and len(schema) == row[0] and all(kind in NUMBERS for kind in schema.types):
        return
    if len(schema) != 1:
        raise ProtocolError(
            f"the Arrow stream must have one column, or a number for each of {list(row)}", len(schema)
        )
    kind = _storage(schema.types[0])
    if kind in (pa.binary(), pa.large_binary()) and images.takes_images(expected):
        return
    if pa.types.is_fixed_size_list(kind) and kind.value_type in NUMBERS and kind.list_size == math.prod(row):
        _check_tensor(schema.types[0], row)
        return
    raise ProtocolError(
        f"the Arrow column must be lists of {math.prod(row)} numbers", str(schema.types[0])[:80]
    )


def _check_tensor(kind: pa.DataType, row: tuple[int, ...]) -> None:
    """A tensor has a shape of its own, which its values stand in; a list has none."""
    if not isinstance(kind, pa.FixedShapeTensorType):
        return
    if tuple(kind.shape) != row:
        raise ProtocolError(f"the Arrow column's tensors must have the shape {list(row)}", list(kind.shape))
    if kind.permutation not in (None, list(range(len(row)))):
        raise ProtocolError(
            "the Arrow column's tensors must not be permuted", list(kind.permutation), "send them row-major"
        )


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.FixedShapeTensorType) else kind


def _rows(batch: pa.RecordBatch, expected: Tensor) -> Array:
    shape = (batch.num_rows, *expected.shape[1:])
    if batch.num_columns > 1 or batch.column(0).type in NUMBERS:
        columns = [_numbers(column, expected) for column in batch.columns]
        return np.stack(columns, axis=1)
    return _numbers(_stored(batch.column(0)).flatten(), expected).reshape(shape)


def _images(batches: Sequence[pa.RecordBatch], expected: Tensor) -> Array:
    """Of all batches at once: what images may take is bounded for a request."""
    images.check_count(sum(batch.num_rows for batch in batches), expected)
    return images.rows_of(
        [file for batch in batches for file in _stored(batch.column(0)).to_pylist()], expected
    )


def _stored(column: pa.Array) -> pa.Array:
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _numbers(column: pa.Array, expected: Tensor) -> Array:
    if column.null_count:
        raise ProtocolError("the Arrow stream has rows without a value")
    return fit(column.to_numpy(zero_copy_only=False), NUMBERS[column.type], expected.datatype)
