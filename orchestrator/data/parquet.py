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


class ParquetInputs:
    """The input columns of one Parquet file; nothing but its schema is read before rows are asked for.

    Args:
        path: of the file.
        decoder: of encoded images.
        wanted: the input column, see `find_input`.
        features: or the numeric columns.
        others: columns that are no input.

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
    ) -> None:
        self.name = path.name
        self._path = path
        self._decoder = decoder
        self.schema, self.rows = read_schema(path)
        self.names, self._kind = find_input(self.schema, wanted, features, others, self.name)
        self.columns = self.names if self._kind == "number" else ()

    def blocks(self, rows: int) -> Iterator[Array]:
        """The first `rows` rows in file order, some at a time."""
        done = 0
        with reading(self._path), pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches(batch_size=BLOCK_ROWS, columns=list(self.names)):
                if done >= rows:
                    return
                used = batch.slice(0, rows - done)
                yield self._decode(used, done)
                done += len(used)

    def _decode(self, batch: pa.RecordBatch, first_row: int) -> Array:
        if self._kind == "number":
            return as_float32(number_rows([batch.column(name) for name in self.names]))
        column = batch.column(self.names[0])
        if self._kind == "tensor":
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
            DataError: the file is missing or not Parquet, or its columns are not what settings say.
        """
        self.name = path.name
        self._path = path
        self._targets = (settings.target,) if isinstance(settings.target, str) else settings.target
        schema, self.total = read_schema(path)
        self.rows = min(self.total, settings.limit or self.total)
        allowed: tuple[Kind, ...] = ("number", "tensor")
        if settings.task == "classification":
            allowed = ("number", "text")
        for name in self._targets:
            require(schema, name, allowed, "data.target", self.name)
        self._inputs = ParquetInputs(
            path, decoder, wanted=settings.input, features=settings.features, others=self._targets
        )
        both = set(self._inputs.names) & set(self._targets)
        if both:
            raise DataError("a column is both input and target", ", ".join(sorted(both)))
        self.columns = self._inputs.columns

    def fingerprint(self) -> str:
        """Hex sha256 of the file."""
        with reading(self._path), self._path.open("rb") as file:
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
        return self._inputs.blocks(self.rows)

    def _column(self, name: str) -> pa.ChunkedArray:
        with reading(self._path):
            return pq.read_table(self._path, columns=[name]).column(0).slice(0, self.rows)


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
