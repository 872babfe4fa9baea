"""The plain formats of `/predict` for models whose clients send text, sound or named columns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import numpy as np
import pyarrow as pa

from deployments.protocol import arrow
from deployments.protocol.datatypes import Array, short
from deployments.protocol.errors import ProtocolError, UnsupportedEncodingError
from deployments.protocol.raw import Encoder, text_of
from deployments.protocol.request import check_names, raw_rows
from deployments.protocol.rest import is_json, parse
from orchestrator.config.encoding import AudioEncoding, Number, TableEncoding, TextEncoding

ANY_TYPE = ("", "application/x-www-form-urlencoded")
"""Media types that say nothing: a client's defaults."""
JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
BYTES = "application/octet-stream"
WAV = ("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave")
_TEXTS = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
_CELLS = (pa.null(), pa.bool_(), *arrow.NUMBERS, *_TEXTS)
"""Types of a table's columns. Of others (views, lists, runs) a short stream may hold values without end."""


def read(body: bytes, media_type: str, encoder: Encoder) -> Array:
    """The rows of a body.

    Args:
        body: in one of the formats.
        media_type: the `Content-Type`, or nothing.
        encoder: the model's.

    Raises:
        ProtocolError: they do not fit the model.
        UnsupportedEncodingError: no such format, or one that the model does not take.
    """
    kind = media_type.partition(";")[0].strip().lower()
    if kind in ANY_TYPE:
        kind = _sniff(encoder.encoding, body)
    return _read(encoder.encoding, body, kind, encoder)


def is_wav(body: bytes) -> bool:
    """Whether the bytes begin like a WAV file."""
    return body[:4] == b"RIFF" and body[8:12] == b"WAVE"


@singledispatch
def _sniff(_encoding: Any, body: bytes) -> str:
    """The media type of a body that came without one."""
    return ARROW if arrow.is_stream(body) else JSON


@_sniff.register
def _sniff_text(_: TextEncoding, body: bytes) -> str:
    if arrow.is_stream(body):
        return ARROW
    return JSON if is_json(body) else "text/plain"


@_sniff.register
def _sniff_audio(_: AudioEncoding, body: bytes) -> str:
    if is_wav(body):
        return WAV[0]
    if arrow.is_stream(body):
        return ARROW
    return JSON if body.lstrip(b" \t\r\n")[:1] in (b"{", b"[") else BYTES


@singledispatch
def _read(encoding: Any, _body: bytes, _kind: str, _encoder: Encoder) -> Array:
    raise TypeError(type(encoding).__name__)


@_read.register
def _text(_: TextEncoding, body: bytes, kind: str, encoder: Encoder) -> Array:
    if kind == "text/plain":
        # Files and shells end with one.
        return encoder.encode([body.removesuffix(b"\n").removesuffix(b"\r")], 1)
    if kind == JSON:
        value = _listed(parse(body))
        texts = value if isinstance(value, list) else [value]
        if odd := [text for text in texts if not isinstance(text, str)]:
            raise ProtocolError("rows must be texts", short(odd[0]))
        return encoder.encode(texts, len(texts))
    if kind == ARROW:
        texts = _one_column(body, encoder, lambda of: of in _TEXTS, "texts")
        return encoder.encode(["" if text is None else text for text in texts], len(texts))
    raise _unsupported(kind, "text/plain", JSON, ARROW)


@_read.register
def _audio(_: AudioEncoding, body: bytes, kind: str, encoder: Encoder) -> Array:
    if kind in WAV:
        return encoder.encode([body], 1)
    if kind == BYTES:
        return encoder.encode([body], 1) if is_wav(body) else raw_rows(memoryview(body), encoder.expected)
    if kind == JSON:
        value = _listed(parse(body))
        nested = isinstance(value, list) and any(isinstance(one, list) for one in value)
        sounds = [_samples(one, row) for row, one in enumerate(value if nested else [value])]
        return encoder.encode(sounds, len(sounds))
    if kind == ARROW:
        sounds = _one_column(body, encoder, _is_sound, "WAV files, or lists of INT16 or floats")
        known = [one if isinstance(one, bytes) else _samples(one, row) for row, one in enumerate(sounds)]
        return encoder.encode(known, len(known))
    raise _unsupported(kind, WAV[0], JSON, BYTES, ARROW)


@_read.register
def _table(encoding: TableEncoding, body: bytes, kind: str, encoder: Encoder) -> Array:
    if kind == JSON:
        value = parse(body)
        alone = isinstance(value, dict) and set(value) != {"rows"}
        rows = [value] if alone else _listed(value)
        if not isinstance(rows, list):
            raise ProtocolError("rows must be objects by column name", short(rows))
        encoder.check_rows(len(rows))
        return encoder.encode(_columns_of(rows, encoding), len(rows))
    if kind == ARROW:
        batches = arrow.batches_of(body, lambda schema: _check_columns(schema, encoder))
        count = sum(batch.num_rows for batch in batches)
        encoder.check_rows(count)
        table = pa.Table.from_batches(batches)
        columns = {column.name: _arrow_values(column, table) for column in encoding.columns}
        return encoder.encode(columns, count)
    raise _unsupported(kind, JSON, ARROW)


def _listed(value: object) -> Any:
    """A list of rows that is not empty, bare or in `{"rows": ...}`, or one row."""
    if isinstance(value, dict):
        if set(value) != {"rows"}:
            raise ProtocolError('send {"rows": [...]}, but the keys are', short(list(value)))
        value = value["rows"]
        if not isinstance(value, list):
            raise ProtocolError("rows must be a list", short(value))
    if value == []:
        raise ProtocolError("rows must be a list with something in it", short(value))
    return value


def _samples(value: object, row: int) -> Array:
    """One waveform: 16-bit integers, or floats in -1..1."""
    if not isinstance(value, list) or not value:
        raise ProtocolError(f"row {row} must be a list of samples", short(value))
    kinds = set(map(type, value))
    if not kinds <= {int, float}:
        raise ProtocolError(f"samples of row {row} must be numbers", short(next(filter(_is_odd, value))))
    try:
        return np.array(value, np.int64 if kinds == {int} else np.float64)
    except OverflowError as error:
        raise ProtocolError(f"row {row} has a sample beyond 16 bits", short(max(value, key=abs))) from error


def _is_odd(value: object) -> bool:
    return type(value) not in (int, float)


def _columns_of(rows: Sequence[object], encoding: TableEncoding) -> dict[str, list[Any]]:
    """Columns of rows that are objects, each with exactly the columns of the encoding; null is missing."""
    names = {column.name for column in encoding.columns}
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ProtocolError("rows must be objects by column name", short(row))
        if missing := [column.name for column in encoding.columns if column.name not in row]:
            raise ProtocolError(f"row {number} has no column", short(missing[0]), "null is a missing value")
        if len(row) > len(names):
            unknown = next(name for name in row if name not in names)
            raise ProtocolError(f"row {number} has an unknown column", short(unknown))
    return {
        column.name: [_value(row[column.name], column, number) for number, row in enumerate(rows)]  # type: ignore[index]
        for column in encoding.columns
    }


def _value(value: object, column: object, row: int) -> object:
    """A number, or a category's name; None where it is missing."""
    name = getattr(column, "name", "")
    if isinstance(column, Number):
        if value is not None and not isinstance(value, bool | int | float):
            raise ProtocolError(f"row {row} has no number in column '{name}'", short(value))
        try:
            return None if value is None else float(value)
        except OverflowError as error:
            raise ProtocolError(f"row {row} has too large a number in column '{name}'") from error
    if isinstance(value, bytes):
        value = text_of(name, value, row)
    whole = isinstance(value, float) and value.is_integer()  # as pandas has a column with gaps
    if value is not None and not whole and not isinstance(value, str | bool | int):
        raise ProtocolError(f"row {row} has no category in column '{name}'", short(value))
    return value


def _check_columns(schema: pa.Schema, encoder: Encoder) -> None:
    encoder.check_columns(check_names(schema.names, "columns"))
    for column in schema:
        if column.type not in _CELLS:
            raise ProtocolError(
                f"the Arrow column '{column.name[:80]}' must be of numbers, truth values or texts",
                str(column.type)[:80],
            )


def _arrow_values(column: Any, table: pa.Table) -> list[Any]:
    values = table.column(column.name).to_pylist()
    return [_value(value, column, row) for row, value in enumerate(values)]


def _is_sound(kind: pa.DataType) -> bool:
    if kind in (pa.binary(), pa.large_binary()):
        return True
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and kind.value_type in (pa.int16(), pa.float32(), pa.float64())


def _one_column(body: bytes, encoder: Encoder, fits: Any, what: str) -> list[Any]:
    """The values of a stream's only column."""

    def check(schema: pa.Schema) -> None:
        if len(schema) != 1 or not fits(schema.types[0]):
            raise ProtocolError(f"the Arrow stream must have one column of {what}", short(str(schema)[:70]))

    batches = arrow.batches_of(body, check)
    encoder.check_rows(sum(batch.num_rows for batch in batches))
    return [value for batch in batches for value in batch.column(0).to_pylist()]


def _unsupported(kind: str, *takes: str) -> UnsupportedEncodingError:
    return UnsupportedEncodingError(
        "the media type is not supported for this model", short(kind), f"send {', '.join(takes)}"
    )
