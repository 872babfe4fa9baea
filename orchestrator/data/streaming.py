"""Parquet files of a streamed train part: looked through once, sampled, and read piece by piece."""

from __future__ import annotations

import glob
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.config.base import fingerprint
from orchestrator.config.data import PARTS, ParquetData, PartName
from orchestrator.config.decode import Decode
from orchestrator.config.signature import Signature
from orchestrator.data.columns import find_input, label_rows, require, text_rows
from orchestrator.data.dataset import Array, Part
from orchestrator.data.encode import encode as encode_rows
from orchestrator.data.images import Decoder
from orchestrator.data.parquet import BLOCK_ROWS, ParquetSource, reading
from orchestrator.data.source import DecodedSource, Source, class_names, encode, nearest, number_of
from orchestrator.data.stream import Piece, Stream, StreamFile
from orchestrator.errors import DataError


def open_streamed(settings: ParquetData, seed: int) -> tuple[SampledSource, dict[PartName, Source]]:
    """A sample of the streamed train files as the train source, and the sources of all parts.

    Reads every byte of the train files once for their digests, and their labels; memory holds the labels of
    one row group.

    Raises:
        DataError: a file is missing or damaged, or not like the first one.
    """
    assert settings.stream is not None
    root = Path(settings.root).expanduser().absolute()
    files = files_of(root, settings)
    train = SampledSource(*_looked_through(files, settings), settings, seed)
    alike = settings.model_copy(update={"input": train.stream.input})
    decoder = Decoder(settings.image)
    found: dict[PartName, Source] = {"train": train}
    digests = {file.sha256 for file in train.stream.files}
    for part in PARTS[1:]:
        source = found[part] = ParquetSource(root / getattr(settings, part), alike, decoder)
        if source.fingerprint() in digests:
            raise _also_train(part, settings)
    return train, found


def files_of(root: Path, settings: ParquetData) -> list[Path]:
    """The train files by name; `settings.train` is a file, a folder or a pattern.

    Raises:
        DataError: there is none, or one of them is another part's.
    """
    place = root / settings.train
    # Of the root, and of a folder's name, no character has a meaning of its own.
    folder, pattern = (place, "*.parquet") if place.is_dir() else (root, settings.train)
    found = [folder / name for name in sorted(glob.glob(pattern, root_dir=folder, recursive=True))]
    if not found:
        raise DataError("no file is data.train", place, "check data.root or --data, and the pattern")
    places = {path.resolve() for path in found}
    for part in PARTS[1:]:
        if (root / getattr(settings, part)).resolve() in places:
            raise _also_train(part, settings)
    return found


def _also_train(part: PartName, settings: ParquetData) -> DataError:
    return DataError(f"data.train holds the file of data.{part}", getattr(settings, part), "move it")


class SampledSource(DecodedSource):
    """Rows drawn from a stream, numbered by their place in the sample (see `Source`)."""

    def __init__(self, stream: Stream, labels: _Labels, settings: ParquetData, seed: int) -> None:
        assert settings.stream is not None
        self.stream, self.total = stream, stream.rows
        self.name = f"the sample of {settings.train}"
        self.decode: Decode | None = settings.decode
        self.columns: tuple[str, ...] = ()
        self.classes = labels.classes(settings)
        self.class_counts = labels.by_class(self.classes)
        """Of all rows."""
        wanted = min(settings.stream.sample, self.total)
        drawn = np.random.default_rng(seed).choice(self.total, wanted, replace=False)
        self._drawn: Array = np.union1d(drawn, list(labels.first.values()))
        self.rows = len(self._drawn)

    def fingerprint(self) -> str:
        """Of all files, where they lie (what is cached names their paths), and what is drawn from them."""
        paths = [file.path for file in self.stream.files]
        return fingerprint([self.stream.digest(), paths, self._drawn.tolist()])

    def labels(self) -> Array:
        """See `Source`."""
        columns = [pa.chunked_array([batch.column(1)]) for batch in self._drawn_rows]
        return np.concatenate([label_rows(column, self.stream.target, self.name) for column in columns])

    def blocks(self) -> Iterator[Array]:
        """See `Source`."""
        raise DataError(f"{self.name} holds raw values", self.stream.input)

    def values(self) -> Array:
        """See `Source`."""
        raise DataError(f"{self.name} has classes", self.stream.target)

    def raw(self, decode: Decode) -> Iterator[Any]:
        """See `Source`."""
        if decode.kind != "text":
            super().raw(decode)
        done = 0
        for batch in self._drawn_rows:
            yield text_rows(batch.column(0), done, self.name)
            done += len(batch)

    @cached_property
    def _drawn_rows(self) -> list[pa.RecordBatch]:
        """Text and labels of the drawn rows; the files may have them in different Arrow types."""
        found = []
        for group in self.stream.groups:
            if len(self._within(group.first, group.rows)):
                for batch, first in _batches(self.stream, group):
                    found.append(batch.take(pa.array(self._within(first, len(batch)))))
        return found

    def _within(self, first: int, rows: int) -> Array:
        """Places of the drawn rows among so many from `first` on."""
        begin, end = np.searchsorted(self._drawn, (first, first + rows))
        return np.asarray(self._drawn[begin:end] - first)


def read(stream: Stream, pieces: Iterable[Piece], signature: Signature) -> Iterator[Part]:
    """The rows of pieces in their order, encoded as serving encodes them, some at a time.

    Args:
        stream: whose pieces.
        pieces: to read one after another.
        signature: of the data set, with its encoding.

    Raises:
        DataError: a file is damaged, or changed since the stream was looked through.
    """
    for piece in pieces:
        name = Path(stream.files[piece.file].path).name
        begin, end = piece.first + piece.skip, piece.first + piece.skip + piece.take
        for batch, first in _batches(stream, piece):
            if first >= end:
                break
            skip = min(max(begin - first, 0), len(batch))
            used = batch.slice(skip, end - first - skip)
            if not len(used):
                continue
            number = first + skip
            row = number - piece.first + stream.row_in_file(piece)
            texts = text_rows(used.column(0), row, name)
            labels = label_rows(pa.chunked_array([used.column(1)]), stream.target, name, row)
            yield Part(
                encode_rows(signature.encoding, texts, first_row=row, origin=name),
                encode(labels, signature.classes, name, row),
                np.arange(number, number + len(used), dtype=np.int64),
            )


def _batches(stream: Stream, piece: Piece) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Input and target of a whole row group, some rows at a time, with the number of the first one."""
    path, done = Path(stream.files[piece.file].path), 0
    with reading(path), pq.ParquetFile(path) as file:
        if _group_rows(file) != stream.files[piece.file].groups:
            raise DataError("a train file changed while it was used", path, "run again")
        columns = [stream.input, stream.target]
        for batch in file.iter_batches(BLOCK_ROWS, row_groups=[piece.group], columns=columns):
            yield batch.select(columns), piece.first + done
            done += len(batch)


@dataclass
class _Labels:
    """What one pass over the labels finds."""

    counts: Counter[Any]
    first: dict[Any, int]
    """Number of the first row with each label."""

    def add(self, labels: Array, first_row: int) -> None:
        """More rows."""
        names, places, times = np.unique(labels, return_index=True, return_counts=True)
        for name, place, count in zip(names.tolist(), places.tolist(), times.tolist(), strict=True):
            self.first.setdefault(name, first_row + place)
            self.counts[name] += count

    def classes(self, settings: ParquetData) -> tuple[str, ...]:
        """Names of the classes in their order.

        Raises:
            DataError: see `class_names`; or a label is none of them, with its row.
        """
        distinct = self._distinct()
        classes = class_names(distinct, settings.classes, settings.train)
        _, wrong = number_of(distinct, classes)
        if wrong is not None:
            label = distinct.tolist()[wrong]
            what = f"row {self.first[label]} of {settings.train} has an unknown label"
            raise DataError(what, label, nearest(str(label), classes))
        return classes

    def by_class(self, classes: Sequence[str]) -> list[int]:
        """Rows of each class."""
        distinct = self._distinct()
        found = dict(zip(number_of(distinct, classes)[0].tolist(), distinct.tolist(), strict=True))
        return [self.counts[found[number]] if number in found else 0 for number in range(len(classes))]

    def _distinct(self) -> Array:
        text = any(isinstance(label, str) for label in self.first)
        return np.asarray(list(self.first), dtype=object if text else np.int64)


def _looked_through(files: Sequence[Path], settings: ParquetData) -> tuple[Stream, _Labels]:
    assert settings.stream is not None
    assert isinstance(settings.target, str)
    target, wanted = settings.target, settings.input
    seen, found, done = _Labels(Counter(), {}), [], 0
    types: set[str] = set()
    for path in files:
        with reading(path), path.open("rb") as whole, pq.ParquetFile(path) as file:
            require(file.schema_arrow, target, ("number", "text"), "data.target", path.name)
            (wanted,), _ = find_input(file.schema_arrow, wanted, (), (target,), path.name, "text")
            groups, first = _group_rows(file), done
            for number, rows in enumerate(groups):
                row = done - first
                labels = label_rows(file.read_row_group(number, [target]).column(0), target, path.name, row)
                _require_texts(file, number, wanted, row, path.name)
                types.add(labels.dtype.kind)
                if len(types) > 1:
                    raise DataError(f"labels of {path.name} are of another type than those before", target)
                seen.add(labels, done)
                done += rows
            found.append(StreamFile(str(path), hashlib.file_digest(whole, "sha256").hexdigest(), groups))
    if wanted is None or not done:
        raise DataError("the files of data.train have no rows", settings.train)
    options = settings.stream
    return Stream(tuple(found), wanted, target, options.shuffle, options.readers), seen


def _require_texts(file: pq.ParquetFile, group: int, column: str, first_row: int, name: str) -> None:
    """Refuse a null, which would end the training later. Footers mostly say that there is none."""
    chunks = file.metadata.row_group(group)
    facts = {chunks.column(k).path_in_schema: chunks.column(k).statistics for k in range(chunks.num_columns)}
    known = facts.get(column)
    if known is None or not known.has_null_count or known.null_count:
        text_rows(file.read_row_group(group, [column]).column(0), first_row, name)


def _group_rows(file: pq.ParquetFile) -> tuple[int, ...]:
    return tuple(file.metadata.row_group(number).num_rows for number in range(file.num_row_groups))
