"""What rows lose when they are encoded: texts that are cut, unknown tokens, missing values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any

import numpy as np

from orchestrator.config.encoding import (
    AudioEncoding,
    Category,
    Encoding,
    TableEncoding,
    TextEncoding,
    Tokens,
)
from orchestrator.data.audio import sound_of
from orchestrator.data.dataset import Array
from orchestrator.data.table import category_names
from orchestrator.data.text import UNKNOWN, numbers, read_texts

Counts = dict[str, tuple[Array, Array]]
"""By name of a share: how many [N], and of how many [N], row by row."""


@singledispatch
def losses(encoding: Encoding, values: Any) -> Counts:
    """Of raw values that `encode` takes. Text: `NAME.cut` and `NAME.unknown` of each segment (hashed n-grams
    know all); sound: `cut`; tables: `COLUMN.missing`, and `COLUMN.unknown` of categories."""
    raise TypeError(f"{type(encoding).__name__}, {type(values).__name__}")


@losses.register
def _of_text(encoding: TextEncoding, values: Sequence[Any]) -> Counts:
    texts, found = read_texts(values, 0, "the rows"), Counts()
    ones = np.ones(len(texts))
    for segment in encoding.segments:
        rows = [numbers(segment, text) for text in texts]
        found[f"{segment.name}.cut"] = np.asarray([len(row) > segment.length for row in rows]), ones
        if isinstance(segment, Tokens):
            unknown = np.asarray([row.count(UNKNOWN) for row in rows])
            found[f"{segment.name}.unknown"] = unknown, np.asarray([len(row) for row in rows])
    return found


@losses.register
def _of_audio(encoding: AudioEncoding, values: Sequence[Any]) -> Counts:
    sizes = [sound_of(value, encoding.rate, "a row") for value in values]
    cut = [count * encoding.rate > encoding.length * rate for count, rate in sizes]
    return {"cut": (np.asarray(cut), np.ones(len(cut)))}


@losses.register
def _of_table(encoding: TableEncoding, values: Mapping[str, Any]) -> Counts:
    found = Counts()
    for column in encoding.columns:
        given = values[column.name]
        ones = np.ones(len(given))
        if isinstance(column, Category):
            names = category_names(given, column.name, "the rows")
            known = {None, *column.values}
            found[f"{column.name}.missing"] = np.asarray([name is None for name in names]), ones
            found[f"{column.name}.unknown"] = np.asarray([name not in known for name in names]), ones
        else:
            found[f"{column.name}.missing"] = np.isnan(np.asarray(given, dtype=np.float64)), ones
    return found


@singledispatch
def sizes(encoding: Encoding) -> dict[str, dict[str, int]]:
    """How large what was fitted is: by segment `size` and `length`, by category its known values; of sound
    `rate` and `length`."""
    raise TypeError(type(encoding).__name__)


@sizes.register
def _text_sizes(encoding: TextEncoding) -> dict[str, dict[str, int]]:
    return {one.name: {"size": one.size, "length": one.length} for one in encoding.segments}


@sizes.register
def _audio_sizes(encoding: AudioEncoding) -> dict[str, dict[str, int]]:
    return {"sound": {"rate": encoding.rate, "length": encoding.length}}


@sizes.register
def _table_sizes(encoding: TableEncoding) -> dict[str, dict[str, int]]:
    return {one.name: {"size": len(one.values)} for one in encoding.columns if isinstance(one, Category)}


class Coverage:
    """Shares of what is lost, per part, added up block by block."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._sums: dict[str, dict[str, tuple[float, float]]] = {}

    def add(self, values: Any, part_of: Array, names: Sequence[str]) -> None:
        """Count a block.

        Args:
            values: raw values [N].
            part_of: number of each row's part [N].
            names: of the parts.
        """
        for share, (counts, of) in losses(self._encoding, values).items():
            for number, name in enumerate(names):
                mine = part_of == number
                before = self._sums.setdefault(name, {}).get(share, (0.0, 0.0))
                self._sums[name][share] = (before[0] + counts[mine].sum(), before[1] + of[mine].sum())

    def facts(self) -> dict[str, Any]:
        """For the summary: `kind`, `sizes`, and by part the shares that are not 0."""
        shares = {
            part: {name: round(float(count / of), 6) for name, (count, of) in sums.items() if count}
            for part, sums in self._sums.items()
        }
        return {"kind": self._encoding.kind, "sizes": sizes(self._encoding), "lost": shares}
