"""Raw values to rows of fixed shape, by a fitted encoding.

One function for the data build, for predictions from a file, and for what clients send.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any, Literal

from orchestrator.config.encoding import AudioEncoding, TableEncoding, TextEncoding
from orchestrator.data.audio import audio_rows
from orchestrator.data.dataset import Array
from orchestrator.data.table import table_rows
from orchestrator.data.text import text_rows
from orchestrator.errors import DataError

RowType = Literal["int32", "int16", "float32"]


@singledispatch
def encode(encoding: Any, values: Any, *, first_row: int = 0, origin: str = "the rows") -> Array:
    """Rows of raw values.

    Text (a sequence of `str`, or of UTF-8 bytes): `int32` [N, L], all segments one after another. A longer
    text is cut at its end; a text without any token is one unknown token.

    Sound (a sequence of WAV files as bytes, or of samples [T] at the encoding's rate as floats in -1..1 or
    16-bit integers): `int16` [N, T]. Other rates are resampled, channels averaged; a longer sound is
    cut at its end, a shorter one is followed by silence.

    Tables (a mapping of column name to a sequence): `float32` [N, F]. A missing number (None, NaN) is filled
    with the median of train rows; a missing or unknown category is code 0; other columns are ignored.

    Args:
        encoding: of the signature.
        values: N of them.
        first_row: number of the first one, for errors.
        origin: what they are rows of, for errors.

    Raises:
        DataError: a value is damaged or of the wrong type; it names the row.
    """
    raise DataError(f"{origin} cannot be encoded", f"{type(values).__name__} from {first_row}, {encoding!r}")


@encode.register
def _text(encoding: TextEncoding, values: Any, *, first_row: int = 0, origin: str = "the rows") -> Array:
    return text_rows(encoding, values, first_row, origin)


@encode.register
def _audio(encoding: AudioEncoding, values: Any, *, first_row: int = 0, origin: str = "the rows") -> Array:
    return audio_rows(encoding, values, first_row, origin)


@encode.register
def _table(encoding: TableEncoding, values: Any, *, first_row: int = 0, origin: str = "the rows") -> Array:
    return table_rows(encoding, values, first_row, origin)


@singledispatch
def row_shape(encoding: object) -> tuple[int, ...]:
    """Shape of one row, without the batch.

    Raises:
        DataError: it is no encoding.
    """
    raise DataError("rows of this kind are not encoded", type(encoding).__name__)


@row_shape.register
def _text_shape(encoding: TextEncoding) -> tuple[int, ...]:
    return (sum(segment.length for segment in encoding.segments),)


@row_shape.register
def _audio_shape(encoding: AudioEncoding) -> tuple[int, ...]:
    return (encoding.length,)


@row_shape.register
def _table_shape(encoding: TableEncoding) -> tuple[int, ...]:
    return (len(encoding.columns),)


@singledispatch
def row_dtype(encoding: object) -> RowType:
    """Type of a row's numbers.

    Raises:
        DataError: it is no encoding.
    """
    raise DataError("rows of this kind are not encoded", type(encoding).__name__)


@row_dtype.register
def _text_dtype(_: TextEncoding) -> RowType:
    return "int32"


@row_dtype.register
def _audio_dtype(_: AudioEncoding) -> RowType:
    return "int16"


@row_dtype.register
def _table_dtype(_: TableEncoding) -> RowType:
    return "float32"
