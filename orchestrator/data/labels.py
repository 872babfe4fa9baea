"""Several labels a row, as they stand in a source, and as columns of 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute

from orchestrator.data.columns import kind_of, plain_texts
from orchestrator.data.dataset import Array
from orchestrator.data.source import LabelSets, nearest, number_of
from orchestrator.errors import DataError


def from_flags(flags: Array, origin: str) -> LabelSets:
    """Of 0 and 1 [N, K].

    Raises:
        DataError: there is another value.
    """
    wrong = np.argwhere((flags != 0) & (flags != 1))
    if len(wrong):
        row, place = wrong[0]
        raise DataError(
            f"row {row} of {origin} has a label that is neither 0 nor 1",
            flags[row, place],
            "lists of one length hold 0 or 1 for each label; lists of any length name labels",
        )
    rows, labels = np.nonzero(flags)
    return LabelSets(len(flags), rows.astype(np.int64), labels.astype(np.int64), flags.shape[1])


def label_sets(column: pa.ChunkedArray, name: str, origin: str) -> LabelSets:
    """Of a column of lists: of text, of numbers of labels, or of one length with 0 or 1 for each label.

    Raises:
        DataError: it is another column, or a row or a label is null.
    """
    type_ = column.type
    lists = pa.types.is_list(type_) or pa.types.is_large_list(type_)
    if not lists and not pa.types.is_fixed_size_list(type_):
        raise _unfit(name, origin, type_)
    array = pa.concat_arrays(column.chunks)
    values, rows = array.flatten(), pa.compute.list_parent_indices(array)
    for found, row_of in ((array, None), (values, rows)):
        if found.null_count:
            place = int(np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))[0])
            row = place if row_of is None else row_of[place].as_py()
            raise DataError(
                f"row {row} of {origin} has a null in column '{name}'",
                fix="an empty list says that it has no label (rows are counted from 0)",
            )
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_fixed_size_list(type_):
        if kind_of(values.type) != "number":
            raise _unfit(name, origin, type_)
        flags = np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False))
        return from_flags(flags.reshape(len(array), type_.list_size), origin)
    if kind_of(values.type) == "text":
        labels = np.asarray(plain_texts(values, rows.to_pylist(), origin), dtype=object)
    elif pa.types.is_integer(values.type):
        labels = np.asarray(values.cast(pa.int64()).to_numpy(), dtype=np.int64)
    else:
        raise _unfit(name, origin, type_)
    return LabelSets(len(array), np.asarray(rows.to_numpy(), dtype=np.int64), labels)


def label_names(sets: LabelSets, given: Sequence[str], origin: str) -> tuple[str, ...]:
    """Names of the labels in their order, from the training source: text sorted, numbers from 0 on.

    Raises:
        DataError: there is no label, some label stands in no row, or columns and names differ in number.
    """
    if sets.columns is not None and given and len(given) != sets.columns:
        raise DataError(
            f"{origin} has {sets.columns} columns of labels, data.classes names", len(given), "name each once"
        )
    if not len(sets.labels):
        raise DataError(f"no row of {origin} has a label", sets.rows, "at least one label must occur")
    if given:
        names = tuple(given)
    elif sets.labels.dtype == object:
        names = tuple(sorted(set(sets.labels.tolist())))
    else:
        names = tuple(map(str, range(sets.columns or int(sets.labels.max()) + 1)))
    counts = encode_sets(sets, names, origin).sum(axis=0, dtype=np.int64)
    for name, count in zip(names, counts.tolist(), strict=True):
        if not count:
            raise DataError(
                f"no row of {origin} has the label", name, "leave it out, or give rows that have it"
            )
    return names


def encode_sets(sets: LabelSets, names: tuple[str, ...], origin: str) -> Array:
    """`int8` [N, K]: 1 where a row has the label.

    Raises:
        DataError: the first label that is none of `names`, with its row.
    """
    if sets.columns not in (None, len(names)):
        raise DataError(f"{origin} has another number of labels than names", sets.columns, str(len(names)))
    numbers, place = number_of(sets.labels, names)
    if place is not None:
        label = sets.labels[place]
        text = sets.labels.dtype == object
        raise DataError(
            f"row {sets.row_of[place]} of {origin} has "
            + ("an unknown label" if text else "a label out of range"),
            label,
            (nearest(label, names) if text else f"labels are 0 to {len(names) - 1}")
            + " (rows are counted from 0)",
        )
    found = np.zeros((sets.rows, len(names)), dtype=np.int8)
    found[sets.row_of, numbers] = 1
    return found


def _unfit(name: str, origin: str, type_: pa.DataType) -> DataError:
    return DataError(
        f"data.target: column '{name}' of {origin} cannot hold several labels",
        type_,
        "use lists of text or of label numbers, or lists of one length of 0 and 1",
    )
