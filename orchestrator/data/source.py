"""What every kind of source offers to the builder of the cache, and the checks that they share."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from orchestrator.config.decode import Decode
from orchestrator.data.dataset import Array
from orchestrator.errors import DataError


@dataclass(frozen=True)
class LabelSets:
    """Which labels the rows of a source have."""

    rows: int
    row_of: Array
    """`int64` [n]: the row of each label, rising."""
    labels: Array
    """[n]: the labels, `int64` numbers or `object` text."""
    columns: int | None = None
    """Where there is a column of 0 and 1 for each label, how many."""


class Source(Protocol):
    """The rows of one file, folder or function, read as a stream."""

    name: str
    """For errors and the report."""
    rows: int
    """Rows that are used."""
    total: int
    """Rows that there are; what `limit` leaves out still counts for the ids of the next file."""
    columns: tuple[str, ...]
    """Names of the features, for errors; empty for images and tensors."""

    decode: Decode | None
    """How raw values are fitted and encoded; None of sources whose blocks are rows already."""

    def fingerprint(self) -> str:
        """A digest that changes whenever the rows may have changed."""
        ...

    def labels(self) -> Array:
        """[N] labels as they stand in the source: `int64`, or `object` strings."""
        ...

    def sets(self) -> LabelSets:
        """The labels of each row, where it may have several."""
        ...

    def values(self) -> Array:
        """[N, T] regression targets as `float64`; missing ones are NaN."""
        ...

    def blocks(self) -> Iterator[Array]:
        """The inputs in source order, some rows at a time."""
        ...

    def raw(self, decode: Decode) -> Iterator[Any]:
        """Raw values in source order, some rows at a time, as `data.encode.encode` takes them."""
        ...

    def incomplete(self) -> bool:
        """Whether numbers are missing that the median of train rows may stand for."""
        ...


class DecodedSource:
    """Base of sources that decode by themselves: nothing is fitted to their rows."""

    name: str
    decode: Decode | None = None

    def raw(self, decode: Decode) -> Iterator[Any]:
        """See `Source`."""
        raise DataError(f"{self.name} holds no raw values", decode.kind)

    def incomplete(self) -> bool:
        """See `Source`."""
        return False

    def sets(self) -> LabelSets:
        """See `Source`."""
        raise DataError("rows of this source have one class each", self.name, "use parquet or custom")


def check_finite(block: Array, first_row: int, origin: str, columns: tuple[str, ...]) -> None:
    """Feature rows [n, F] have numbers only; images always have.

    Raises:
        DataError: a value is missing or not finite; it names the row, counted from `first_row`.
    """
    if block.dtype.kind != "f":
        return
    wrong = np.argwhere(~np.isfinite(block))
    if len(wrong):
        row, place = wrong[0]
        name = f"column '{columns[place]}'" if place < len(columns) else f"feature {place}"
        raise DataError(
            f"row {first_row + row} of {origin} has a missing or not finite value in {name}",
            block[row, place],
            "fill or remove it, or set data.transform (rows are counted from 0)",
        )


def class_names(raw: Array, given: Sequence[str], origin: str) -> tuple[str, ...]:
    """Class names in label order, from the labels of the training source.

    Text labels are sorted by name and integers must run from 0 without gaps, unless `given` names all.

    Raises:
        DataError: there is one class only, or integers leave out a class.
    """
    distinct = sorted(set(raw.tolist()))
    if len(distinct) < 2:
        raise DataError(
            f"all labels of {origin} are the same", distinct[0], "classification needs at least two classes"
        )
    if given:
        return tuple(given)
    if raw.dtype == object:
        return tuple(distinct)
    for number, label in enumerate(distinct):
        if number != label:
            raise DataError(
                f"labels of {origin} are out of range",
                f"{len(distinct)} labels from {distinct[0]} to {distinct[-1]}, but none is {number}",
                "number the classes 0, 1, 2, ... without gaps, use text labels, or name every class in "
                "data.classes",
            )
    return tuple(str(label) for label in distinct)


def encode(raw: Array, classes: tuple[str, ...], origin: str, first_row: int = 0) -> Array:
    """`int64` [N] labels.

    Raises:
        DataError: the first label that is none of `classes`, with its row, counted from `first_row`.
    """
    found, wrong = number_of(raw, classes)
    if wrong is not None and raw.dtype == object:
        raise DataError(
            f"row {first_row + wrong} of {origin} has an unknown label",
            raw[wrong],
            f"{nearest(raw[wrong], classes)} (rows are counted from 0)",
        )
    if wrong is not None:
        raise DataError(
            f"row {first_row + wrong} of {origin} has a label out of range",
            raw[wrong],
            f"with {len(classes)} classes labels are 0 to {len(classes) - 1} (rows are counted from 0)",
        )
    return found


def number_of(labels: Array, names: Sequence[str]) -> tuple[Array, int | None]:
    """Numbers [n] of labels, by name (`object`) or as they are, and the place of the first that is none."""
    if labels.dtype == object:
        known = {name: number for number, name in enumerate(names)}
        labels = np.asarray([known.get(label, -1) for label in labels.tolist()], dtype=np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
    return labels, int(wrong[0]) if len(wrong) else None


def nearest(wrong: str, known: Sequence[str]) -> str:
    """A hint for a name that is not known: the nearest one and the list."""
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.5)
    shown = ", ".join(known[:20]) + (f", ... ({len(known)} in all)" if len(known) > 20 else "")
    return (f"did you mean '{near[0]}'? " if near else "") + f"there are: {shown}"
