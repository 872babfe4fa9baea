"""Image folders `class/name.png` as sources of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from orchestrator.config.data import FolderData
from orchestrator.data.dataset import Array
from orchestrator.data.images import SUFFIXES, Decoder
from orchestrator.data.source import DecodedSource
from orchestrator.errors import DataError

BLOCK_ROWS = 512


class FolderSource(DecodedSource):
    """One folder of class folders.

    Rows go round the classes (the first image of each class, then the second of each, ...; names
    sorted), so that the first rows are of all classes.
    """

    columns: tuple[str, ...] = ()

    def __init__(self, root: Path, settings: FolderData, decoder: Decoder) -> None:
        """
        Raises:
            DataError: the folder is missing, holds no class folders, or a class holds no image.
        """
        self.name = root.name
        self._root = root
        self._decoder = decoder
        ranked = [
            (rank, name, path)
            for name, paths in list_classes(root).items()
            for rank, path in enumerate(paths)
        ]
        ranked.sort(key=lambda entry: entry[:2])
        self.total = len(ranked)
        self.rows = min(self.total, settings.limit or self.total)
        self._files = [path for _, _, path in ranked[: self.rows]]
        self._labels = [name for _, name, _ in ranked[: self.rows]]

    def fingerprint(self) -> str:
        """Hex sha256 over name, size and time of change of every file."""
        digest = hashlib.sha256()
        for path in self._files:
            facts = path.stat()
            line = f"{path.relative_to(self._root)}\0{facts.st_size}\0{facts.st_mtime_ns}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def labels(self) -> Array:
        """See `Source`: the folders' names."""
        return np.asarray(self._labels, dtype=object)

    def values(self) -> Array:
        """Not offered: folders hold classes."""
        raise DataError("image folders hold classes, not values", self._root)

    def blocks(self) -> Iterator[Array]:
        """See `Source`."""
        for start in range(0, self.rows, BLOCK_ROWS):
            yield np.stack([self._decode(row) for row in range(start, min(start + BLOCK_ROWS, self.rows))])

    def _decode(self, row: int) -> Array:
        path = self._files[row]
        place = f"row {row} of {self.name} ({path.relative_to(self._root)})"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"the image in {place} cannot be read", error.strerror) from error
        return self._decoder.image(data, place)


def list_classes(root: Path) -> dict[str, list[Path]]:
    """Sorted image files of each class folder, classes sorted by name.

    Raises:
        DataError: the folder is missing, holds no class folders, or a class holds no image.
    """
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DataError("cannot read the image folder", root, f"check the path ({error.strerror})") from error
    if not folders:
        raise DataError("the image folder has no class folders", root, "expected class/name.png below it")
    found = {}
    for folder in folders:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        if not files:
            raise DataError("a class folder holds no images", folder, f"supported are {', '.join(SUFFIXES)}")
        found[folder.name] = files
    return found
