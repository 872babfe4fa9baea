"""Blobs that pyarrow's file systems read, such as `gs://`: for serving, copying and looking, not for writing.

pyarrow offers no conditional write, so two writers of one ref could both believe that they won. Rather than
that, such a store is read-only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
from pyarrow import fs

from orchestrator.errors import InputError, NotFoundError, StoreError, first_line
from orchestrator.store.blobs import RENEW_S, Blobs
from orchestrator.store.names import check_key, is_key
from orchestrator.store.retry import patience_s, patiently
from orchestrator.store.s3 import copies_of

_TRY_S = 5


class ArrowBlobs(Blobs):
    """Files below a URI, or below the root of a given file system; every writing method refuses."""

    def __init__(self, location: str, files: fs.FileSystem | None = None) -> None:
        """Of a URI that `pyarrow.fs.FileSystem.from_uri` understands, or of `files` as they are.

        Raises:
            InputError: pyarrow does not understand the URI, or it names no bucket.
        """
        self.location = location.rstrip("/")
        self._patience_s = patience_s()
        if files is None:
            if not location.partition("://")[2].partition("?")[0].strip("/"):
                raise InputError("the URI names no bucket", location, "write gs://bucket/folder")
            try:
                base, root = fs.FileSystem.from_uri(_impatient(self.location))
            except (pa.ArrowException, ValueError, OSError) as error:
                raise InputError(
                    f"not a URI of a store ({first_line(error)})", location, "write gs://bucket/folder"
                ) from error
            files = fs.SubTreeFileSystem(root, base)
        self._files = files

    def path(self, key: str) -> Path:
        """Where this machine keeps a copy of the key."""
        return copies_of(self.location) / check_key(key)

    def shown(self, key: str) -> str:
        """The key's URI."""
        return f"{self.location}/{check_key(key)}"

    def exists(self, key: str) -> bool:
        """Whether a file has this key."""
        return bool(self._info(key).type == fs.FileType.File)

    def size(self, key: str) -> int:
        """Bytes of a file."""
        info = self._info(key)
        if info.type != fs.FileType.File:
            raise NotFoundError("no such file in the store", self.shown(key))
        return int(info.size)

    def get(self, key: str) -> bytes:
        """All bytes of a file."""
        self.size(key)

        def call() -> bytes:
            with self._files.open_input_file(key) as file:
                return bytes(file.read())

        try:
            return patiently(call, _passes, patience_s=self._patience_s)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"cannot read ({first_line(error)})", self.shown(key)) from error

    def list(self, folder: str, *, recursive: bool = True) -> list[str]:
        """Sorted keys of the files below `folder`."""
        return sorted(str(info.path) for info in self._below(folder, recursive))

    def top(self) -> set[str]:
        """Names at the root."""
        infos = self._infos(fs.FileSelector("", allow_not_found=True), self.location)
        return {str(info.base_name) for info in infos}

    def ages_s(self, folder: str) -> dict[str, float]:
        """Seconds since each file below `folder` was written, by this machine's clock."""
        return {str(info.path): time.time() - info.mtime_ns / 1e9 for info in self._below(folder, True)}

    def age_s(self, key: str) -> float:
        """Seconds since the file was written, by this machine's clock; infinite when there is none."""
        info = self._info(key)
        return time.time() - info.mtime_ns / 1e9 if info.type == fs.FileType.File else float("inf")

    def renew(self, folder: str, *, marker: str, older_s: float = RENEW_S) -> bool:
        """Only whether the marker is there: nobody removes anything here."""
        del older_s
        return self.exists(f"{folder}/{marker}")

    def put(self, key: str, data: bytes) -> None:
        """Refused."""
        del data
        self._refuse(key)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Refused, unless just these bytes are there."""
        if self.exists(key) and self.get(key) == data:
            return False
        self._refuse(key)

    def put_folder(self, key: str, files: Mapping[str, bytes]) -> bool:
        """Refused, unless the folder's last file is there."""
        *_, marker = files
        if self.exists(f"{key}/{marker}"):
            return False
        self._refuse(key)

    def delete(self, key: str) -> None:
        """Refused."""
        self._refuse(key)

    def delete_folder(self, key: str, *, marker: str = "", older_s: float | None = None) -> bool:
        """Refused."""
        del marker, older_s
        self._refuse(key)

    def touch(self, key: str) -> bool:
        """Refused."""
        self._refuse(key)

    def used(self, key: str) -> None:
        """Nothing: nobody removes anything here."""

    def clean(self, older_s: float = 86_400.0) -> int:
        """Nothing."""
        del older_s
        return 0

    def _info(self, key: str) -> fs.FileInfo:
        check_key(key)
        try:
            return patiently(lambda: self._files.get_file_info(key), _passes, patience_s=self._patience_s)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"cannot read ({first_line(error)})", self.shown(key)) from error

    def _below(self, folder: str, recursive: bool) -> Iterator[fs.FileInfo]:
        selector = fs.FileSelector(check_key(folder), allow_not_found=True, recursive=recursive)
        infos = self._infos(selector, self.shown(folder))
        yield from (info for info in infos if info.type == fs.FileType.File and is_key(str(info.path)))

    def _infos(self, selector: fs.FileSelector, place: str) -> Sequence[fs.FileInfo]:
        try:
            found: Sequence[fs.FileInfo] = patiently(
                lambda: self._files.get_file_info(selector), _passes, patience_s=self._patience_s
            )
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"cannot list ({first_line(error)})", place) from error
        return found

    def _refuse(self, key: str) -> NoReturn:
        raise StoreError(
            f"a store on {self.location.partition('://')[0]}:// can only be read",
            self.shown(key),
            "write to a store on a file system or s3://, and copy it there",
        )


def _impatient(uri: str) -> str:
    """A URI whose client soon says what is wrong: by itself it tries for minutes; our tries are to count."""
    if "retry_limit_seconds=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}retry_limit_seconds={_TRY_S}"


def _passes(error: Exception) -> bool:
    """Whether pyarrow's error may pass; it has one kind for all that a network does."""
    known = FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError
    return isinstance(error, OSError) and not isinstance(error, known)
