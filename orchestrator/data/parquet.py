"""Parquet files as sources of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.config.data import ParquetData
from orchestrator.data.columns import (
    Kind,
    encoded_rows,
    find_input,
    kind_of,
    label_rows,
    number_rows,
    require,
    tensor_rows,
)
from orchestrator.data.dataset import Array, as_float32
from orchestrator.data.images import Decoder
from orchestrator.errors import DataError

BLOCK_ROWS = 1024


class ParquetSource:
    """One Parquet file; nothing but its schema is read before rows are asked for."""

    def __init__(self, path: Path, settings: ParquetData, decoder: Decoder) -> None:
        """
        Raises:
            DataError: the file is missing or not Parquet, or its columns are not what settings say.
        """
        self.name = path.name
        self._path = path
        self._decoder = decoder
        self._task = settings.task
        schema, self.total = read_schema(path)
        self.rows = min(self.total, settings.limit or self.total)
        self._targets = (settings.target,) if isinstance(settings.target, str) else settings.target
        allowed: tuple[Kind, ...] = ("number", "tensor")
        if settings.task == "classification":
            allowed = ("number", "text")
        for name in self._targets:
            require(schema, name, allowed, "data.target", self.name)
        self._inputs, self._kind = find_input(
            schema, settings.input, settings.features, self._targets, self.name
        )
        both = set(self._inputs) & set(self._targets)
        if both:
            raise DataError("a column is both input and target", ", ".join(sorted(both)))
        self.columns = self._inputs if self._kind == "number" else ()

    def fingerprint(self) -> str:
        """Hex sha256 of the file."""
        with _reading(self._path), self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def labels(self) -> Array:
        """See `Source`."""
        return label_rows(self._column(self._targets[0]), self._targets[0], self.name)

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
        done = 0
        with _reading(self._path), pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches(batch_size=BLOCK_ROWS, columns=list(self._inputs)):
                if done >= self.rows:
                    return
                used = batch.slice(0, self.rows - done)
                yield self._decode(used, done)
                done += len(used)

    def _decode(self, batch: pa.RecordBatch, first_row: int) -> Array:
        if self._kind == "number":
            return as_float32(number_rows([batch.column(name) for name in self._inputs]))
        column = batch.column(self._inputs[0])
        if self._kind == "tensor":
            return tensor_rows(column, first_row, self.name)
        files = encoded_rows(column, first_row, self.name)
        return np.stack(
            [self._decoder.image(data, f"row {first_row + k} of {self.name}") for k, data in enumerate(files)]
        )

    def _column(self, name: str) -> pa.ChunkedArray:
        with _reading(self._path):
            return pq.read_table(self._path, columns=[name]).column(0).slice(0, self.rows)


def read_schema(path: Path) -> tuple[pa.Schema, int]:
    """Schema and number of rows.

    Raises:
        DataError: the file is missing, unreadable or not Parquet.
    """
    with _reading(path), pq.ParquetFile(path) as file:
        return file.schema_arrow, file.metadata.num_rows


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(
            "data file not found", path, "check data.root or --data, and the file's name"
        ) from error
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"cannot read as Parquet ({reason})", path, "check that the file is whole") from error
