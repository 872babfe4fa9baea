"""Named bytes below one root: whole or not there, whatever moment a process dies at.

One interface for local and shared file systems (`local.py`), S3 (`s3.py`) and what pyarrow reads
(`arrow.py`). What all promise: a reader sees a file whole or not at all; of many racing `put_if_absent`
exactly one wins; a folder is published at once, or by its last file. `docs/storage.md` says how each keeps
that.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import NotFoundError, StoreError

TEMPORARY = ".tmp"
"""Folder for what is being written; no key reaches it, because no key's part begins with a dot."""
RENEW_S = 60.0
"""A file younger than this need not be renewed again."""


class Blobs(abc.ABC):
    """Files below a root, named by keys: names with slashes between them.

    All methods raise `StoreError` when the storage refuses, and the writing ones `DiskFullError` when no
    space is left; a failed write leaves the old state.
    """

    location: str
    """An absolute path, or a URI, which opens the same files elsewhere."""
    local = False
    """Whether `path` is where the bytes are, instead of a copy."""

    @abc.abstractmethod
    def path(self, key: str) -> Path:
        """Local path of a key's bytes, or of their copy on this machine where they are elsewhere."""

    @abc.abstractmethod
    def shown(self, key: str) -> str:
        """The key as people find it: a path or URI."""

    @abc.abstractmethod
    def exists(self, key: str) -> bool:
        """Whether a file has this key."""

    @abc.abstractmethod
    def size(self, key: str) -> int:
        """Bytes of a file.

        Raises:
            NotFoundError: there is none.
        """

    @abc.abstractmethod
    def get(self, key: str) -> bytes:
        """All bytes of a file.

        Raises:
            NotFoundError: there is none.
        """

    @abc.abstractmethod
    def list(self, folder: str, *, recursive: bool = True) -> list[str]:
        """Sorted keys of the files below `folder`; none when the folder does not exist.

        Files that no key names (`.DS_Store`, `.nfs0001`) are others' and left out.
        """

    @abc.abstractmethod
    def top(self) -> set[str]:
        """Names at the root, of files and folders alike."""

    @abc.abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write a file, in place of an older one if there is one."""

    @abc.abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write a file unless the key is taken; of many racing writers exactly one gets True."""

    @abc.abstractmethod
    def put_folder(self, key: str, files: Mapping[str, bytes]) -> bool:
        """Publish a folder of files at once; False, and nothing written, when the key is taken.

        The last file of `files` is the one that marks the folder as whole where folders cannot be renamed.
        """

    @abc.abstractmethod
    def delete(self, key: str) -> None:
        """Remove a file; none there is no error."""

    @abc.abstractmethod
    def delete_folder(self, key: str, *, marker: str = "", older_s: float | None = None) -> bool:
        """Remove a folder with all it holds; no reader that looks for `marker` first sees a part of it.

        Args:
            key: of the folder.
            marker: the file that marks the folder as whole.
            older_s: leave it, and return False, when the marker was written or renewed since.
        """

    @abc.abstractmethod
    def touch(self, key: str) -> bool:
        """Set a file's time to now, by the clock of the storage; False when there is none."""

    @abc.abstractmethod
    def renew(self, folder: str, *, marker: str, older_s: float = RENEW_S) -> bool:
        """Keep a folder from being removed as old; False when its marker is not there.

        Excludes `delete_folder(older_s=...)`: either that sees the new time, or this one returns False.
        """

    @abc.abstractmethod
    def ages_s(self, folder: str) -> dict[str, float]:
        """Seconds since each file below `folder` was written or touched, by its key.

        Both times come from the storage, so the clocks of two machines may differ.
        """

    @abc.abstractmethod
    def age_s(self, key: str) -> float:
        """Seconds since the file was written or touched, as `ages_s`; infinite when there is none."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each file below `folder`, by its key."""
        found = {}
        for key in self.list(folder):
            with contextlib.suppress(NotFoundError):
                found[key] = self.size(key)
        return found

    def used(self, key: str) -> None:
        """Note that a file was used, so that it is not the first to go where a cache is full.

        Quietly: where nothing can be written, what is there can still be read.
        """
        with contextlib.suppress(StoreError):
            if RENEW_S < self.age_s(key) < float("inf"):
                self.touch(key)

    @abc.abstractmethod
    def clean(self, older_s: float = 86_400.0) -> int:
        """Remove what killed writers left more than `older_s` seconds ago; returns how many things."""
