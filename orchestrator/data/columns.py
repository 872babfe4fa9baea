"""Arrow columns: which hold inputs, and their rows as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute

from orchestrator.data.dataset import Array, as_float32
from orchestrator.data.source import nearest
from orchestrator.errors import DataError

Kind = Literal["encoded", "tensor", "number", "text", "texts", "other"]
IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "pixels")
"""Names that say which of several candidates is the input."""
AUDIO_NAMES = ("audio", "sound", "speech", "wav", "waveform", "recording")
TEXT_NAMES = ("text", "sentence", "utterance", "query", "document", "content")
INDEX_PREFIX = "__index_level_"
"""Pandas' index columns: never features."""


def kind_of(type_: pa.DataType) -> Kind:
    """What a column of this Arrow type can be used as."""
    types = pa.types
    if isinstance(type_, pa.BaseExtensionType):
        return "tensor" if isinstance(type_, pa.FixedShapeTensorType) else "other"
    if types.is_struct(type_):
        place = type_.get_field_index("bytes")
        return "encoded" if place >= 0 and _is_bytes(type_.field(place).type) else "other"
    if _is_bytes(type_):
        return "encoded"
    if types.is_fixed_size_list(type_) or types.is_list(type_) or types.is_large_list(type_):
        holds = kind_of(type_.value_type)
        return "tensor" if holds in ("number", "tensor") else "texts" if holds == "text" else "other"
    if types.is_integer(type_) or types.is_floating(type_) or types.is_boolean(type_):
        return "number"
    if types.is_decimal(type_):
        return "number"
    if types.is_dictionary(type_):
        return "text" if kind_of(type_.value_type) == "text" else "other"
    return "text" if types.is_string(type_) or types.is_large_string(type_) else "other"


Holds = Literal["image", "audio", "text", "tensor", "numbers", "features"]
"""What the input columns hold: `features` are named numbers and categories, `numbers` an array of them."""
_FITTING: dict[str, tuple[Kind, ...]] = {
    "image": ("encoded", "tensor"),
    "audio": ("encoded", "tensor"),
    "text": ("text",),
    "tensor": ("tensor", "number"),
    "features": ("number", "text"),
}
"""Kinds of columns that each `decode` reads."""
_NAMES = {"image": IMAGE_NAMES, "audio": AUDIO_NAMES, "text": TEXT_NAMES}


def find_input(
    schema: pa.Schema,
    wanted: str | None,
    features: tuple[str, ...],
    targets: tuple[str, ...],
    origin: str,
    decode: str | None = None,
) -> tuple[tuple[str, ...], Holds]:
    """The input columns and what they hold.

    When settings name none: the only column of images, sound or tensors (or the one that is called like
    that), else all numeric columns but the targets, else the only column of text (or the one called like
    it). With `decode`, the only column that it reads, or all for features. Files in a column that is called
    like sound are sound; whether others are is for the caller to see.

    Args:
        schema: of the file.
        wanted: the input column.
        features: or the columns of a feature row.
        targets: columns that are no input.
        origin: the file's name, for errors.
        decode: kind of the run file's `data.decode`.

    Raises:
        DataError: a named column is missing or of another type, or none or several would fit.
    """
    if features or decode == "features":
        names = features or _free(schema, targets, ("number", "text"), origin)
        kinds = [require(schema, name, ("number", "text"), "data.features", origin) for name in names]
        return names, "features" if decode == "features" or "text" in kinds else "numbers"
    if wanted is None:
        wanted = _sought(schema, targets, origin, decode)
    if wanted is None:
        return _free(schema, targets, ("number",), origin), "numbers"
    allowed = _FITTING[decode] if decode else ("encoded", "tensor", "number", "text")
    kind = require(schema, wanted, allowed, "data.input", origin)
    if decode == "text" or kind == "text":
        return (wanted,), "text"
    if decode == "audio" or (kind == "encoded" and decode is None and wanted.lower() in AUDIO_NAMES):
        return (wanted,), "audio"
    if kind == "encoded":
        return (wanted,), "image"
    return (wanted,), "tensor" if kind == "tensor" else "numbers"


def _sought(schema: pa.Schema, targets: tuple[str, ...], origin: str, decode: str | None) -> str | None:
    """The one column that is the input; None where numeric columns are."""
    others = [name for name in schema.names if name not in targets and not name.startswith(INDEX_PREFIX)]
    kinds = {name: kind_of(schema.field(name).type) for name in others}
    fitting = _FITTING[decode] if decode else ("encoded", "tensor")
    usual = _NAMES.get(decode, ()) if decode else (*IMAGE_NAMES, *AUDIO_NAMES)
    found = [name for name in others if kinds[name] in fitting]
    if not found and decode is None:
        if "number" in kinds.values():
            return None
        usual, found = TEXT_NAMES, [name for name in others if kinds[name] == "text"]
    called = [name for name in usual if name in found]
    if called or len(found) == 1:
        return (called or found)[0]
    if found:
        raise DataError(f"several columns of {origin} could be the input", ", ".join(found), "set data.input")
    raise _none(schema, origin)


def _free(
    schema: pa.Schema, targets: tuple[str, ...], kinds: tuple[Kind, ...], origin: str
) -> tuple[str, ...]:
    """All columns of these kinds but the targets."""
    others = [name for name in schema.names if name not in targets and not name.startswith(INDEX_PREFIX)]
    found = tuple(name for name in others if kind_of(schema.field(name).type) in kinds)
    if not found:
        raise _none(schema, origin)
    return found


def _none(schema: pa.Schema, origin: str) -> DataError:
    listed = ", ".join(f"{name} ({schema.field(name).type})" for name in schema.names)
    return DataError(
        f"no column of {origin} can be the input",
        listed,
        "images, sound, text, tensors or numeric columns are needed",
    )


def require(schema: pa.Schema, name: str, kinds: tuple[Kind, ...], setting: str, origin: str) -> Kind:
    """The kind of a named column, which must be one of `kinds`.

    Raises:
        DataError: there is no such column, or it is of another type.
    """
    count = schema.names.count(name)
    if count != 1:
        what = f"{setting}: no column of {origin} has this name"
        what = what if count == 0 else f"{setting}: {count} columns of {origin} have this name"
        raise DataError(what, name, nearest(name, schema.names))
    kind = kind_of(schema.field(name).type)
    if kind not in kinds:
        spoken = {
            "encoded": "files",
            "tensor": "tensors",
            "number": "numbers",
            "text": "text",
            "texts": "lists of text",
        }
        raise DataError(
            f"{setting}: column '{name}' of {origin} has an unsupported type",
            schema.field(name).type,
            "supported here: " + ", ".join(spoken[kind] for kind in kinds),
        )
    return kind


def encoded_rows(column: pa.Array, first_row: int, origin: str, what: str = "image") -> list[bytes]:
    """The files of a column as bytes.

    Raises:
        DataError: a row has no bytes.
    """
    files = pa.compute.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
    _no_nulls(files, first_row, origin, f"has no {what}")
    found: list[bytes] = files.to_pylist()
    return found


def list_rows(column: pa.Array, first_row: int, origin: str) -> list[Array]:
    """The rows of a column of lists, each of its own length, as arrays of one axis.

    Raises:
        DataError: a row is null, or has several axes.
    """
    _no_nulls(column, first_row, origin, "has no value")
    if isinstance(column.type, pa.FixedShapeTensorType) and len(column.type.shape) != 1:
        raise DataError(
            f"rows of {origin} have several axes",
            list(column.type.shape),
            "give lists of numbers, one channel",
        )
    plain = column.storage if isinstance(column.type, pa.FixedShapeTensorType) else column
    return [np.asarray(row.values.to_numpy(zero_copy_only=False)) for row in plain]


def text_rows(column: pa.Array, first_row: int, origin: str) -> list[str]:
    """The texts of a column.

    Raises:
        DataError: a row is null or no UTF-8.
    """
    _no_nulls(column, first_row, origin, "has no text")
    found: list[str] = plain_texts(column, range(first_row, first_row + len(column)), origin)
    return found


def plain_texts(column: Any, rows: Sequence[int], origin: str) -> list[Any]:
    """The values of a column of text; None of a null. `rows` are their numbers, for errors.

    Raises:
        DataError: a value is no UTF-8, which Arrow does not see to.
    """
    try:
        found: list[Any] = column.to_pylist()
        return found
    except UnicodeDecodeError:
        for row, value in zip(rows, column, strict=True):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"row {row} of {origin} has text that is no UTF-8",
                    error.object[:60],
                    "write it as UTF-8 (rows are counted from 0)",
                ) from error
        raise


def tensor_rows(column: pa.Array, first_row: int, origin: str) -> Array:
    """The rows of a tensor column: `uint8` [N, C, H, W] where it holds images, else `float32` [N, F].

    `uint8` of three axes is an image, channels first unless the axes' names or sizes (1 or 3 last, and
    not first) say otherwise; of two axes a gray image. All else is flattened into feature rows.

    Raises:
        DataError: a row is null, lists differ in length, or `uint8` has more than three axes.
    """
    names: list[str] | None = None
    if isinstance(column.type, pa.FixedShapeTensorType):
        _no_nulls(column, first_row, origin, "has no value")
        names = _axes(column.type)
        values = _nested(column.storage, first_row, origin).reshape(-1, *column.type.shape)
        if column.type.permutation:
            values = values.transpose(0, *(axis + 1 for axis in column.type.permutation))
    else:
        values = _nested(column, first_row, origin)
    if values.dtype != np.uint8 or values.ndim == 2:
        return as_float32(values.reshape(len(values), -1))
    if values.ndim == 3:
        return np.expand_dims(values, 1)
    if values.ndim > 4:
        raise DataError(
            f"tensors of {origin} have too many axes", list(values.shape[1:]), "images have at most three"
        )
    channels = (1, 3)
    last = values.shape[3] in channels and values.shape[1] not in channels
    if names is not None and "C" in names:
        last = names.index("C") == 2
    return np.moveaxis(values, 3, 1) if last else values


def number_rows(columns: list[pa.Array]) -> Array:
    """`float64` [N, columns]; nulls become NaN."""
    return np.stack([_numbers(column) for column in columns], axis=1)


def label_rows(column: pa.ChunkedArray, name: str, origin: str, first_row: int = 0) -> Array:
    """Labels as they stand: `int64` [N], or `object` strings; booleans become "false" and "true".

    Raises:
        DataError: a label is null, or of a type that cannot be a label.
    """
    _no_nulls(column, first_row, origin, f"has no label in column '{name}'")
    type_ = column.type
    if pa.types.is_dictionary(type_):
        column, type_ = column.cast(type_.value_type), type_.value_type
    if pa.types.is_boolean(type_):
        return np.asarray(["true" if label else "false" for label in column.to_pylist()], dtype=object)
    if kind_of(type_) == "text":
        rows = range(first_row, first_row + len(column))
        return np.asarray(plain_texts(column, rows, origin), dtype=object)
    if not pa.types.is_integer(type_):
        raise DataError(
            f"column '{name}' of {origin} cannot hold labels",
            type_,
            "use integers or text, or set data.task: regression for real-valued targets",
        )
    try:
        return np.asarray(column.cast(pa.int64()).to_numpy(), dtype=np.int64)
    except pa.ArrowInvalid as error:
        raise DataError(f"a label in column '{name}' of {origin} is out of range", error) from error


def _is_bytes(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def _no_nulls(column: Any, first_row: int, origin: str, what: str) -> None:
    if column.null_count:
        row = first_row + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"row {row} of {origin} {what}", fix="fill or remove it (rows are counted from 0)")


def _numbers(column: pa.Array) -> Array:
    if not pa.types.is_floating(column.type):
        column = column.cast(pa.float64(), safe=False)
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)


def _axes(type_: pa.FixedShapeTensorType) -> list[str] | None:
    """Upper-case names of the axes in logical order."""
    if type_.dim_names is None:
        return None
    names = [name.upper()[:1] for name in type_.dim_names]
    return [names[place] for place in type_.permutation] if type_.permutation else names


def _nested(column: pa.Array, first_row: int, origin: str) -> Array:
    """Equal-sized lists of any depth as one array."""
    shape = [len(column)]
    while kind_of(column.type) == "tensor":
        _no_nulls(column, first_row, origin, "has a null")
        if pa.types.is_fixed_size_list(column.type):
            sizes = np.asarray([column.type.list_size])
        else:
            sizes = np.unique(pa.compute.list_value_length(column).to_numpy())
        if len(sizes) > 1:
            raise DataError(f"lists of {origin} differ in length", sizes.tolist(), "all rows need one shape")
        if len(column) and not sizes[0]:
            raise DataError(
                f"lists of {origin} are empty", fix="give each row a value, or name other columns"
            )
        shape.append(int(sizes[0]) if len(sizes) else 0)
        column = column.flatten()
    if column.null_count or not pa.types.is_uint8(column.type):
        return _numbers(column).reshape(shape)
    return np.asarray(column.to_numpy()).reshape(shape)
