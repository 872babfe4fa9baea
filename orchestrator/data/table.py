"""Named columns to feature rows: numbers, and the codes of categories."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache, singledispatch

import numpy as np

from orchestrator.config.encoding import Category, Number, TableEncoding
from orchestrator.data.dataset import Array, as_float32
from orchestrator.data.source import nearest
from orchestrator.errors import DataError

UNKNOWN_CODE = 0
"""Of a missing value, and of one that train rows did not have."""


def table_rows(
    encoding: TableEncoding, values: Mapping[str, Sequence[object]], first_row: int, origin: str
) -> Array:
    """`float32` [N, F]; see `orchestrator.data.encode.encode`. Columns of other names are not looked at."""
    if not isinstance(values, Mapping):
        raise DataError(f"{origin} must be columns by name", type(values).__name__)
    for column in encoding.columns:
        if column.name not in values:
            raise DataError(f"{origin} have no column", column.name, nearest(column.name, tuple(values)))
    found = [
        numbers(column, values[column.name], _Place(range(first_row, sys.maxsize), origin, column.name))
        for column in encoding.columns
    ]
    lengths = {column.name: len(part) for column, part in zip(encoding.columns, found, strict=True)}
    if len(set(lengths.values())) > 1:
        raise DataError(f"columns of {origin} differ in length", lengths)
    return np.stack(found, axis=1)


class _Place:
    """Where a value stands, for errors."""

    def __init__(self, rows: Sequence[int], origin: str, column: str) -> None:
        self._rows, self._origin, self._column = rows, origin, column

    def error(self, row: int, what: str, value: object) -> DataError:
        return DataError(
            f"row {self._rows[row]} of {self._origin} has {what} in column '{self._column}'",
            value,
            "rows are counted from 0",
        )


@singledispatch
def numbers(column: object, values: Sequence[object], place: _Place) -> Array:
    """`float32` [N] of one column.

    Raises:
        DataError: a value is of another type than the column, or not finite.
    """
    raise place.error(0, f"{len(values)} values that nothing reads", type(column).__name__)


@numbers.register
def _number(column: Number, values: Sequence[object], place: _Place) -> Array:
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iufb":
        raw = values.astype(np.float64)
    else:
        raw = np.asarray([_as_number(value, row, place) for row, value in enumerate(values)], np.float64)
    rows = as_float32(np.where(np.isnan(raw), column.fill, raw))
    wrong = np.flatnonzero(~np.isfinite(rows))
    if len(wrong):
        raise place.error(int(wrong[0]), "a number that is not finite", raw[wrong[0]])
    return rows


def _as_number(value: object, row: int, place: _Place) -> float:
    if value is None:
        return math.nan
    if isinstance(value, int | float | np.integer | np.floating | np.bool_):
        try:
            return float(value)
        except OverflowError:
            return math.inf  # a whole number that no float holds; refused as such
    raise place.error(row, "no number", repr(value)[:60])


@numbers.register
def _category(column: Category, values: Sequence[object], place: _Place) -> Array:
    codes = _codes(column.values)
    plain = values.tolist() if isinstance(values, np.ndarray) else values
    names = (_name(value, row, place) for row, value in enumerate(plain))
    found = [UNKNOWN_CODE if name is None else codes.get(name, UNKNOWN_CODE) for name in names]
    return np.asarray(found, dtype=np.float32)


def category_names(
    values: Sequence[object], column: str, origin: str, rows: Sequence[int] | None = None
) -> list[str | None]:
    """Categories as text: whole numbers (of floats, too: pandas writes a column with gaps so) and booleans as
    JSON writes them; None of a missing one. `rows` are their numbers, for errors.

    Raises:
        DataError: a value is of another type.
    """
    place = _Place(range(len(values)) if rows is None else rows, origin, column)
    return [_name(value, row, place) for row, value in enumerate(values)]


def _name(value: object, row: int, place: _Place) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    raise place.error(row, "no category", repr(value)[:60])


@lru_cache(maxsize=256)
def _codes(values: tuple[str, ...]) -> dict[str, int]:
    return {value: number + 1 for number, value in enumerate(values)}
