"""What clients send as they have it (text, sound, named columns) to the rows that the ensemble takes.

The encoding is that of the model's signature, and `orchestrator.data.encode` is what training read its rows
by. Here stands what may come from outside: names, datatypes and shapes of tensors, how many rows, how long a
text.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, singledispatch
from typing import Any
from unicodedata import combining, normalize

import numpy as np

from deployments.protocol import datatypes
from deployments.protocol.datatypes import BINARY_ONLY, BYTES, WIRE, Array, short
from deployments.protocol.errors import ProtocolError, TooLargeError
from deployments.protocol.model import INPUT, Model, Tensor
from orchestrator.config.encoding import AudioEncoding, Category, Number, TableEncoding, TextEncoding
from orchestrator.config.serving import ServingSettings
from orchestrator.data.encode import encode
from orchestrator.errors import DataError, DeadlineError

TEXT_BYTES = 64 * 1024
"""Longest text, in UTF-8: all of it is cut into tokens, however few of them are kept."""
MARKS = 64
"""Most combining marks in a row: Python takes the square of their number to put them in order."""
TOGETHER = 256
"""Rows that are encoded between two looks at the clock."""
WAVEFORMS = ("INT16", "FP32", "FP64")
TOKENS = ("INT32", "INT64")

Elements = list[bytes | None]
"""Of a BYTES tensor; None where JSON had null."""
Column = Sequence[Any] | Array
Values = Column | Mapping[str, Column]


@dataclass(frozen=True)
class Given:
    """An input tensor of a request."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Array | Elements

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def is_bytes(self) -> bool:
        return self.datatype == BYTES


class Encoder:
    """Makes rows for one model.

    Args:
        model: with an encoding.
        serving: limits.
    """

    def __init__(self, model: Model, serving: ServingSettings) -> None:
        assert model.encoding is not None
        self.encoding = model.encoding
        self.expected = model.input
        self.most_rows = model.most_rows(serving.max_body_bytes)
        self.large_bytes = _large_bytes(model.encoding)
        """Bodies of that size are encoded in a thread."""
        self._names = tuple(tensor.name for tensor in model.inputs)
        self._longest_s = serving.deadline_s

    def check_inputs(self, names: Sequence[str]) -> None:
        """The names of a request's inputs are the model's, or that of encoded rows.

        Raises:
            ProtocolError: one is missing, or unknown.
        """
        if list(names) != [INPUT]:
            self.check_columns(names)

    def check_columns(self, names: Sequence[str]) -> None:
        """The names are those of the model's inputs.

        Raises:
            ProtocolError: one is missing, or unknown.
        """
        if missing := [name for name in self._names if name not in names]:
            raise ProtocolError("the request has no input", short(missing[0]))
        if unknown := [name for name in names if name not in self._names]:
            raise ProtocolError("the model has no such input", short(unknown[0]))

    def check(self, name: str, datatype: object, shape: object) -> tuple[str, tuple[int, ...]]:
        """Datatype and shape of an input, if they are such as the model takes.

        Raises:
            ProtocolError: they are not.
            TooLargeError: too many rows.
        """
        takes = _taken(self.encoding, name, self.expected)
        if not isinstance(datatype, str) or datatype not in takes:
            raise ProtocolError(f"datatype of '{name}' must be one of {', '.join(takes)}", short(datatype))
        if not isinstance(shape, list) or any(type(size) is not int for size in shape):
            raise ProtocolError("shape must be a list of whole numbers", short(shape))
        wanted = takes[datatype]
        fits = len(shape) == 2 and shape[1] > 0 and wanted in (shape[1], -1)
        if not shape or shape[0] < 1 or not (fits or (wanted == 1 and len(shape) == 1)):
            how = "any" if wanted < 0 else wanted
            raise ProtocolError(f"shape of '{name}' must be [rows >= 1, {how}]", short(shape))
        self.check_rows(shape[0])
        return datatype, tuple(shape)

    def check_rows(self, count: int) -> None:
        """So many rows may be in one request.

        Raises:
            TooLargeError: they may not.
        """
        if count > self.most_rows:
            raise TooLargeError(f"a request may have at most {self.most_rows} rows", count)

    def rows(self, given: Sequence[Given]) -> Array:
        """Rows of a request's inputs, which `check_inputs` and `check` let pass.

        Raises:
            ProtocolError: a value cannot be encoded, or inputs differ in rows.
            TooLargeError: a text is too long.
            DeadlineError: it takes longer than an answer may.
        """
        counts = {one.rows for one in given}
        if len(counts) > 1:
            raise ProtocolError("inputs must have the same number of rows", short(sorted(counts)))
        return _rows(self.encoding, given, self)

    def bare(self, body: bytes) -> Array:
        """The one row whose text or file a body is.

        Raises:
            ProtocolError: the model takes several inputs, or it cannot be encoded.
        """
        self.check_columns([INPUT])
        return self.encode([body], 1)

    def encode(self, values: Values, count: int) -> Array:
        """Encoded rows.

        Args:
            values: as `orchestrator.data.encode` takes them.
            count: of rows.

        Raises:
            as `rows`
        """
        self.check_rows(count)
        _check_values(self.encoding, values)
        until = time.monotonic() + self._longest_s
        parts: list[Array] = []
        for first in range(0, count, TOGETHER):
            if time.monotonic() > until:
                raise DeadlineError("the rows were not encoded in time", f"{self._longest_s:g} s")
            try:
                parts.append(
                    encode(self.encoding, _cut(values, first), first_row=first, origin="the request")
                )
            except DataError as error:
                raise ProtocolError(error.what, error.value, error.fix) from error
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def from_bytes(name: str, datatype: str, shape: tuple[int, ...], raw: memoryview) -> Given:
    """An input from the bytes of a tensor.

    Raises:
        ProtocolError: they do not fit datatype and shape.
    """
    if datatype == BYTES:
        found: Elements = [*datatypes.elements(raw, math.prod(shape))]
        return Given(name, datatype, shape, found)
    return Given(name, datatype, shape, datatypes.from_bytes(datatype, raw, shape))


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: object) -> Given:
    """An input from the `data` of a tensor. In BYTES, FP32 and FP64 null is a missing value.

    Raises:
        ProtocolError: it does not fit datatype and shape.
    """
    flat = datatypes.flatten(data, shape)
    missing = [place for place, value in enumerate(flat) if value is None]
    if not missing or datatype not in (BYTES, "FP32", "FP64"):
        if datatype == BYTES:
            elements: Elements = [*datatypes.strings(flat, math.prod(shape))]
            return Given(name, datatype, shape, elements)
        return Given(name, datatype, shape, datatypes.from_json(datatype, data, shape))
    if datatype == BYTES:
        known = datatypes.strings(["" if value is None else value for value in flat], math.prod(shape))
        return Given(name, datatype, shape, [None if flat[i] is None else one for i, one in enumerate(known)])
    numbers = datatypes.from_json(datatype, [0 if value is None else value for value in flat], shape)
    values = numbers.astype(np.float64)
    values.reshape(-1)[missing] = math.nan
    return Given(name, datatype, shape, values)


def text_of(name: str, value: bytes, row: int) -> str:
    """UTF-8 as text.

    Raises:
        ProtocolError: it is none.
    """
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError(f"row {row} of '{name}' is not UTF-8", error.reason) from error


def _cut(values: Values, first: int) -> Values:
    if isinstance(values, Mapping):
        return {name: column[first : first + TOGETHER] for name, column in values.items()}
    return values[first : first + TOGETHER]


@lru_cache(maxsize=1)
def _many_marks() -> re.Pattern[str]:
    # By what they are decomposed to: some are of two marks, and are none themselves.
    every = map(chr, range(sys.maxunicode + 1))
    marks = "".join(re.escape(one) for one in every if combining(normalize("NFD", one)[0]))
    return re.compile(f"[{marks}]{{{MARKS + 1}}}")


@singledispatch
def _large_bytes(encoding: Any) -> int:
    raise TypeError(type(encoding).__name__)


@_large_bytes.register
def _of_long_text(_: TextEncoding) -> int:
    return 2048  # about a millisecond of cutting into tokens


@_large_bytes.register
def _of_long_audio(_: AudioEncoding) -> int:
    return 0  # another rate than the model's takes milliseconds whatever its length


@_large_bytes.register
def _of_long_table(_: TableEncoding) -> int:
    return 16 * 1024


@singledispatch
def _taken(encoding: Any, _name: str, _expected: Tensor) -> Mapping[str, int]:
    """For each datatype that an input takes the size of its second axis; -1 for any."""
    raise TypeError(type(encoding).__name__)


@_taken.register
def _by_text(_: TextEncoding, _name: str, expected: Tensor) -> Mapping[str, int]:
    return {BYTES: 1, **dict.fromkeys(TOKENS, expected.shape[1])}


@_taken.register
def _by_audio(_: AudioEncoding, _name: str, _expected: Tensor) -> Mapping[str, int]:
    return {BYTES: 1, **dict.fromkeys(WAVEFORMS, -1)}


@_taken.register
def _by_table(encoding: TableEncoding, name: str, expected: Tensor) -> Mapping[str, int]:
    column = _named(encoding, name)
    if column is None:
        return {expected.datatype: expected.shape[1]}
    return dict.fromkeys(_of_numbers(column) if isinstance(column, Number) else _of_categories(column), 1)


def _named(encoding: TableEncoding, name: str) -> Number | Category | None:
    return next((column for column in encoding.columns if column.name == name), None)


def _of_numbers(_column: Number) -> tuple[str, ...]:
    return tuple(WIRE)


def _of_categories(_column: Category) -> tuple[str, ...]:
    """Whole numbers and truth values are the category of that name, as they were in training."""
    return (BYTES, *(name for name in WIRE if name not in (*BINARY_ONLY, "FP32", "FP64")))


@singledispatch
def _rows(encoding: Any, _given: Sequence[Given], _encoder: Encoder) -> Array:
    raise TypeError(type(encoding).__name__)


@_rows.register
def _text_rows(encoding: TextEncoding, given: Sequence[Given], encoder: Encoder) -> Array:
    (one,) = given
    if one.is_bytes:
        return encoder.encode([b"" if text is None else text for text in one.values], one.rows)
    tokens = datatypes.fit(np.asarray(one.values), one.datatype, encoder.expected.datatype)
    first = 0
    for segment in encoding.segments:
        part = tokens[:, first : first + segment.length]
        first += segment.length
        if part.min() < 0 or part.max() >= segment.size:
            worst = int(part.min() if part.min() < 0 else part.max())
            raise ProtocolError(f"tokens of '{segment.name}' must be 0..{segment.size - 1}", worst)
    return tokens


@_rows.register
def _audio_rows(_: AudioEncoding, given: Sequence[Given], encoder: Encoder) -> Array:
    (one,) = given
    if one.is_bytes:
        return encoder.encode([b"" if sound is None else sound for sound in one.values], one.rows)
    return encoder.encode(np.asarray(one.values), one.rows)


@_rows.register
def _table_rows(encoding: TableEncoding, given: Sequence[Given], encoder: Encoder) -> Array:
    if len(given) == 1 and _named(encoding, given[0].name) is None:
        return _encoded_table(encoding, given[0], encoder.expected)
    encoder.check_columns([one.name for one in given])
    return encoder.encode({one.name: _column(one) for one in given}, given[0].rows)


def _encoded_table(encoding: TableEncoding, given: Given, expected: Tensor) -> Array:
    """Rows that a client encoded itself."""
    rows = datatypes.fit(np.asarray(given.values), given.datatype, expected.datatype)
    rows = rows.reshape(given.rows, -1)  # [rows] is [rows, 1]
    for place, column in enumerate(encoding.columns):
        if isinstance(column, Category):
            codes = rows[:, place]
            if wrong := codes[
                (codes != np.floor(codes)) | (codes < 0) | (codes > len(column.values))
            ].tolist():
                raise ProtocolError(f"codes of '{column.name}' must be 0..{len(column.values)}", wrong[0])
    return rows


def _column(given: Given) -> Column:
    """A column's values."""
    if not isinstance(given.values, list):
        return given.values.reshape(-1)
    return [
        None if value is None else text_of(given.name, value, row) for row, value in enumerate(given.values)
    ]


@singledispatch
def _check_values(_encoding: Any, _values: Any) -> None:
    """Refuse values that would take long, or too much room, to encode."""


@_check_values.register
def _check_texts(_: TextEncoding, values: Any) -> None:
    for row, text in enumerate(values):
        if len(text) > TEXT_BYTES or (
            isinstance(text, str) and len(text.encode("utf-8", "replace")) > TEXT_BYTES
        ):
            raise TooLargeError(f"a text may have at most {TEXT_BYTES} bytes", f"row {row}")
        if not text.isascii():
            letters = text.decode(errors="replace") if isinstance(text, bytes) else text
            if _many_marks().search(letters):
                raise TooLargeError(f"a text may have at most {MARKS} accents on one letter", f"row {row}")
