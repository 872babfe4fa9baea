"""Parquet files as sources of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.config.data import PARTS, ParquetData, PartName
from orchestrator.config.decode import AudioDecode, Decode, FeaturesDecode, TextDecode
from orchestrator.config.encoding import Encoding
from orchestrator.config.signature import Task
from orchestrator.data.columns import (
    IMAGE_NAMES,
    Kind,
    encoded_rows,
    find_input,
    kind_of,
    label_rows,
    list_rows,
    number_rows,
    plain_texts,
    require,
    tensor_rows,
    text_rows,
)
from orchestrator.data.dataset import Array, as_float32
from orchestrator.data.encode import encode
from orchestrator.data.fit import decode_of
from orchestrator.data.images import Decoder
from orchestrator.data.labels import label_sets
from orchestrator.data.source import LabelSets, nearest
from orchestrator.errors import DataError

BLOCK_ROWS = 1024
_RAW = {"text": TextDecode, "audio": AudioDecode, "features": FeaturesDecode}
"""What is fitted and encoded; all else is decoded by itself."""


_TARGETS: dict[Task, tuple[Kind, ...]] = {
    "classification": ("number", "text"),
    "multilabel": ("tensor", "texts"),
    "regression": ("number", "tensor"),
}


class ParquetInputs:
    """The input columns of one Parquet file. Nothing but its schema is read before rows are asked for, and
    the first file of a column that could hold images or sound.

    Args:
        path: of the file.
        decoder: of encoded images.
        wanted: the input column, see `find_input`.
        features: or the columns of a feature row.
        others: columns that are no input.
        decode: what the input holds; found from the schema when not given.

    Raises:
        DataError: the file is missing or not Parquet, or its columns are not what settings say.
    """

    def __init__(
        self,
        path: Path,
        decoder: Decoder,
        *,
        wanted: str | None = None,
        features: tuple[str, ...] = (),
        others: tuple[str, ...] = (),
        decode: Decode | None = None,
    ) -> None:
        self.name = path.name
        self._path = path
        self._decoder = decoder
        self.schema, self.rows = read_schema(path)
        kind = None if decode is None else decode.kind
        self.names, holds = find_input(self.schema, wanted, features, others, self.name, kind)
        if holds == "image" and decode is None and self._is_sound():
            holds = "audio"
        self.holds = holds
        self.columns = self.names if holds in ("numbers", "features") else ()
        self.decode: Decode | None = None
        if holds in _RAW:
            self.decode = _RAW[holds]() if decode is None else decode
        if isinstance(decode, FeaturesDecode):
            for name in decode.categories:
                if name not in self.names:
                    raise DataError(
                        "data.decode.categories: no feature has this name", name, nearest(name, self.names)
                    )

    def blocks(self, rows: int) -> Iterator[Array]:
        """The first `rows` rows in file order, decoded, some at a time; where `decode` is None."""
        for batch, first_row in self._batches(rows):
            yield self._decode(batch, first_row)

    def raw(self, rows: int, categories: tuple[str, ...] = ()) -> Iterator[Any]:
        """The first `rows` rows as raw values that `data.encode.encode` takes, some at a time.

        Args:
            rows: how many.
            categories: numeric columns whose values are categories.
        """
        for batch, first_row in self._batches(rows):
            column = batch.column(self.names[0])
            if self.holds == "text":
                yield text_rows(column, first_row, self.name)
            elif self.holds == "audio":
                lists = kind_of(column.type) == "tensor"
                yield (
                    list_rows(column, first_row, self.name)
                    if lists
                    else encoded_rows(column, first_row, self.name, "sound")
                )
            else:
                yield {
                    name: self._values(batch.column(name), name in categories, first_row)
                    for name in self.names
                }

    def encoded(self, encoding: Encoding | None) -> Iterator[Array]:
        """All rows, decoded or encoded, some at a time; raw values need an encoding."""
        if encoding is None:
            yield from self.blocks(self.rows)
            return
        decode, done = decode_of(encoding), 0
        for block in self.raw(self.rows, decode.categories if isinstance(decode, FeaturesDecode) else ()):
            rows = encode(encoding, block, first_row=done, origin=self.name)
            done += len(rows)
            yield rows

    def incomplete(self, rows: int) -> bool:
        """Whether a number is missing in the first rows of numeric columns."""
        if self.holds != "numbers":
            return False
        return any(
            np.isnan(number_rows([batch.column(name) for name in self.names])).any()
            for batch, _ in self._batches(rows)
        )

    def _batches(self, rows: int) -> Iterator[tuple[pa.RecordBatch, int]]:
        done = 0
        with reading(self._path), pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches(batch_size=BLOCK_ROWS, columns=list(self.names)):
                if done >= rows:
                    return
                used = batch.slice(0, rows - done)
                yield used, done
                done += len(used)

    def _values(self, column: pa.Array, category: bool, first_row: int) -> Any:
        if category or kind_of(column.type) == "text":
            return plain_texts(column, range(first_row, first_row + len(column)), self.name)
        return number_rows([column])[:, 0]

    def _is_sound(self) -> bool:
        """Whether the first file of the input column is a WAV file."""
        if self.names[0].lower() in IMAGE_NAMES:
            return False
        with reading(self._path), pq.ParquetFile(self._path) as file:
            batch = next(file.iter_batches(batch_size=1, columns=list(self.names)), None)
        if batch is None or not len(batch):
            return False
        value = batch.column(0)[0].as_py()
        first = (value.get("bytes") if isinstance(value, dict) else value) or b""
        return bool(first[:4] == b"RIFF" and first[8:12] == b"WAVE")

    def _decode(self, batch: pa.RecordBatch, first_row: int) -> Array:
        if self.holds == "numbers":
            return as_float32(number_rows([batch.column(name) for name in self.names]))
        column = batch.column(self.names[0])
        if self.holds == "tensor":
            return tensor_rows(column, first_row, self.name)
        files = encoded_rows(column, first_row, self.name)
        return np.stack(
            [self._decoder.image(data, f"row {first_row + k} of {self.name}") for k, data in enumerate(files)]
        )


class ParquetSource:
    """One Parquet file with its targets."""

    def __init__(self, path: Path, settings: ParquetData, decoder: Decoder) -> None:
        """
        Raises:
            DataError: the file is missing or not Parquet, or its input columns are not what settings say.
        """
        self.name = path.name
        self._path = path
        self._targets = (settings.target,) if isinstance(settings.target, str) else settings.target
        schema, self.total = read_schema(path)
        self.rows = min(self.total, settings.limit or self.total)
        self._schema, self._kinds = schema, _TARGETS[settings.task]
        self._inputs = ParquetInputs(
            path,
            decoder,
            wanted=settings.input,
            features=settings.features,
            others=self._targets,
            decode=settings.decode,
        )
        both = set(self._inputs.names) & set(self._targets)
        if both:
            raise DataError("a column is both input and target", ", ".join(sorted(both)))
        self.columns = self._inputs.columns
        self.features = settings.features or self.columns
        """With `input`, the settings that name its input columns, for files that are to be read alike."""
        self.input = settings.input if self.features else self._inputs.names[0]
        self.decode = self._inputs.decode
        self._fills = settings.transform is None
        if self.decode is not None and settings.transform is not None:
            raise DataError(
                f"clients send raw {self.decode.kind}, which a transform would not see",
                settings.transform,
                "leave data.transform out",
            )

    def fingerprint(self) -> str:
        """Hex sha256 of the file."""
        with reading(self._path), self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def labels(self) -> Array:
        """See `Source`."""
        return label_rows(self._column(self._targets[0]), self._targets[0], self.name)

    def sets(self) -> LabelSets:
        """See `Source`."""
        return label_sets(self._column(self._targets[0]), self._targets[0], self.name)

    def values(self) -> Array:
        """See `Source`; a target column of lists gives several targets."""
        found = []
        for name in self._targets:
            column = pa.concat_arrays(self._column(name).chunks)
            if kind_of(column.type) == "tensor":
                found.append(tensor_rows(column, 0, self.name))
            else:
                found.append(number_rows([column]))
        return np.concatenate(found, axis=1)

    def blocks(self) -> Iterator[Array]:
        """See `Source`."""
        return self._inputs.blocks(self.rows)

    def raw(self, decode: Decode) -> Iterator[Any]:
        """See `Source`."""
        return self._inputs.raw(self.rows, decode.categories if isinstance(decode, FeaturesDecode) else ())

    def incomplete(self) -> bool:
        """See `Source`."""
        return self._fills and self._inputs.incomplete(self.rows)

    def _column(self, name: str) -> pa.ChunkedArray:
        # Only now: labels that nobody asks for may be missing.
        require(self._schema, name, self._kinds, "data.target", self.name)
        with reading(self._path):
            return pq.read_table(self._path, columns=[name]).column(0).slice(0, self.rows)


def open_alike(settings: ParquetData, decoder: Decoder) -> dict[PartName, ParquetSource]:
    """The files of all parts; columns that were found in the train file are read by name from the others,
    which may have them in another order.

    Raises:
        DataError: a file is missing or not Parquet, or its columns are not what settings say, or others than
            the train file's.
    """
    root = Path(settings.root).expanduser().absolute()
    train = ParquetSource(root / settings.train, settings, decoder)
    alike = settings.model_copy(update={"features": train.features, "input": train.input})
    found: dict[PartName, ParquetSource] = {"train": train}
    for part in PARTS[1:]:
        file = getattr(settings, part)
        if file is None:
            continue
        source = found[part] = ParquetSource(root / file, alike, decoder)
        if _kind(source.decode) != _kind(train.decode):
            raise DataError(
                f"{source.name} must hold what {train.name} does",
                f"{_kind(source.decode)} instead of {_kind(train.decode)}",
                "give the columns the same types in all files, or set data.decode",
            )
    return found


def _kind(decode: Decode | None) -> str:
    return "images or numbers" if decode is None else decode.kind


def read_schema(path: Path) -> tuple[pa.Schema, int]:
    """Schema and number of rows.

    Raises:
        DataError: the file is missing, unreadable or not Parquet.
    """
    with reading(path), pq.ParquetFile(path) as file:
        return file.schema_arrow, file.metadata.num_rows


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Errors of reading this file as one that says what to do.

    Raises:
        DataError: within the block the file was missing, unreadable or not Parquet.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(
            "data file not found", path, "check data.root or --data, and the file's name"
        ) from error
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"cannot read as Parquet ({reason})", path, "check that the file is whole") from error
