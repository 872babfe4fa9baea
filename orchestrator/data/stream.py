"""A train part that lies in many files, and which rows of them a worker reads in an epoch, in which order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from orchestrator.config.base import fingerprint

FILE = "stream.json"
"""In the cache folder."""


@dataclass(frozen=True)
class StreamFile:
    """One Parquet file."""

    path: str
    """Absolute."""
    sha256: str
    groups: tuple[int, ...]
    """Rows of its row groups."""


@dataclass(frozen=True)
class Piece:
    """Rows of one row group: all but the first `skip`, at most `take`."""

    file: int
    group: int
    first: int
    """Number of the group's first row among the rows of all files."""
    rows: int
    """Of the whole group."""
    skip: int
    take: int


@dataclass(frozen=True)
class Stream:
    """All that a worker needs to read the train part by itself. Plain data: it crosses process boundaries."""

    files: tuple[StreamFile, ...]
    """In order of their names."""
    input: str
    """Column of text."""
    target: str
    """Column of labels."""
    shuffle: int
    """Rows that a worker holds to mix their order."""
    readers: int
    """Tasks that read ahead of a worker."""

    @cached_property
    def groups(self) -> tuple[Piece, ...]:
        """All row groups, whole, in file order."""
        found, first = [], 0
        for number, file in enumerate(self.files):
            for group, rows in enumerate(file.groups):
                found.append(Piece(number, group, first, rows, 0, rows))
                first += rows
        return tuple(found)

    @cached_property
    def rows(self) -> int:
        """Of all files."""
        return sum(piece.rows for piece in self.groups)

    def row_in_file(self, piece: Piece) -> int:
        """Number of its row group's first row among the rows of its file."""
        return sum(self.files[piece.file].groups[: piece.group])

    def digest(self) -> str:
        """Of the rows and what decides their order, wherever the files lie."""
        contents = [[file.sha256, list(file.groups)] for file in self.files]
        return fingerprint([contents, self.input, self.target, self.shuffle])

    def save(self, folder: Path) -> None:
        """Write it into a cache folder."""
        (folder / FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Stream | None:
        """The stream of a cache folder, if its train part is one."""
        if not (folder / FILE).exists():
            return None
        plain = json.loads((folder / FILE).read_text(encoding="utf-8"))
        files = tuple(StreamFile(**{**file, "groups": tuple(file["groups"])}) for file in plain["files"])
        return cls(**{**plain, "files": files})


def share_of(stream: Stream, seed: int, epoch: int, rank: int, world: int) -> Iterator[Piece]:
    """What one worker of several reads in an epoch: a pure function of the arguments.

    All row groups stand in a random order of the epoch's; each rank takes an equal run of the rows in it (one
    row more or less), so that every row is read once, and few groups are opened twice.
    """
    begin, end = (stream.rows * each // world for each in (rank, rank + 1))
    order = np.random.default_rng([seed, epoch]).permutation(len(stream.groups))
    done = 0
    for number in order.tolist():
        group = stream.groups[number]
        skip, stop = max(begin - done, 0), min(end - done, group.rows)
        if skip < stop:
            yield Piece(group.file, group.group, group.first, group.rows, skip, stop - skip)
        done += group.rows
