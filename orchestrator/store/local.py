"""Blobs in a folder of this machine, or of a file system that many machines mount (NFS, EFS, FSx, Lustre).

Writing is by local calls whose order makes it durable: a temporary file is written and synced, gets its name
by one atomic rename (or hard link, for `put_if_absent`), then the folder is synced. Over a network the reply
to a link or rename may be lost and the call sent again: what happened is then looked up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from pyarrow import fs

from orchestrator.errors import DiskFullError, ForeignStoreError, NotFoundError, StoreError
from orchestrator.store.blobs import RENEW_S, TEMPORARY, Blobs
from orchestrator.store.leases import folder_lease, held
from orchestrator.store.names import check_key, is_key

_LIST_TRIES = 20


class LocalBlobs(Blobs):
    """Files below `root`."""

    local = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.location = str(root)
        self._files = fs.SubTreeFileSystem(str(root), fs.LocalFileSystem())

    def path(self, key: str) -> Path:
        """Local path of a key."""
        return self.root / check_key(key)

    def shown(self, key: str) -> str:
        """The key's path."""
        return str(self.path(key))

    def exists(self, key: str) -> bool:
        """Whether a file has this key."""
        return bool(self._info(key).type == fs.FileType.File)

    def size(self, key: str) -> int:
        """Bytes of a file.

        Raises:
            NotFoundError: there is none.
        """
        info = self._info(key)
        if info.type == fs.FileType.NotFound:
            raise NotFoundError("no such file in the store", self.path(key))
        if info.type != fs.FileType.File:
            raise StoreError("not a plain file", self.path(key), "remove it and run again")
        return int(info.size)

    def get(self, key: str) -> bytes:
        """All bytes of a file.

        Raises:
            NotFoundError: there is none.
        """
        self.size(key)
        with _explained("cannot read", self.path(key)), self._files.open_input_file(key) as file:
            return bytes(file.read())

    def list(self, folder: str, *, recursive: bool = True) -> list[str]:
        """Sorted keys of the files below `folder`; none when the folder does not exist."""
        selector = fs.FileSelector(check_key(folder), allow_not_found=True, recursive=recursive)
        with _explained("cannot list", self.path(folder)):
            for _ in range(_LIST_TRIES):
                # pyarrow looks twice: a folder that another process makes (or one that it removes) in between
                # is reported as an error even so.
                with contextlib.suppress(FileNotFoundError):
                    infos = self._files.get_file_info(selector)
                    files = (str(info.path) for info in infos if info.type == fs.FileType.File)
                    return sorted(filter(is_key, files))
        raise StoreError("cannot list a folder that others keep changing", self.path(folder), "run again")

    def top(self) -> set[str]:
        """Names at the root, but that of unfinished files.

        Raises:
            ForeignStoreError: the root is no folder, or not ours to look into.
        """
        try:
            return set(os.listdir(self.root)) - {TEMPORARY}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise ForeignStoreError(
                f"the path is no usable folder ({error.strerror})", self.root, "choose another --store"
            ) from error

    def put(self, key: str, data: bytes) -> None:
        """Write a file, in place of an older one if there is one."""
        target = self.path(key)
        with self._temporary_file(target, data) as temporary:
            os.replace(temporary, target)
            _sync_folder(target.parent)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write a file unless the key is taken; of many racing writers exactly one gets True."""
        target = self.path(key)
        with self._temporary_file(target, data) as temporary:
            try:
                os.link(temporary, target)
            except FileExistsError:
                # A second name means that the link was made, and only its reply was lost.
                if os.stat(temporary).st_nlink < 2:
                    return False
            _sync_folder(target.parent)
            return True

    def put_folder(self, key: str, files: Mapping[str, bytes]) -> bool:
        """Publish a folder of files at once; False, and nothing written, when the key is taken.

        The last file of `files` is the one that marks the folder as whole where folders cannot be renamed.
        """
        target = self.path(key)
        with _explained("cannot write", target):
            self._make_folder(target.parent)
            temporary = self._temporary_path()
            try:
                for name, data in files.items():
                    path = temporary / check_key(name)
                    self._make_folder(path.parent)
                    _write_synced(path, data)
                    _sync_folder(path.parent)
                os.rename(temporary, target)
            except OSError as error:
                # What a rename onto a folder with files gives, by file system.
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return False
                # The reply was lost, and the call, sent again, no longer found what it had renamed.
                if error.errno != errno.ENOENT or temporary.exists() or not target.is_dir():
                    raise
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            _sync_folder(target.parent)
            return True

    def delete(self, key: str) -> None:
        """Remove a file; none there is no error."""
        path = self.path(key)
        with _explained("cannot remove", path), contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def delete_folder(self, key: str, *, marker: str = "", older_s: float | None = None) -> bool:
        """Remove a folder with all it holds, at once for every reader."""
        if older_s is None:
            self._remove_folder(self.path(key))
            return True
        with held(self, folder_lease(key)):
            if self.age_s(f"{key}/{marker}") <= older_s:
                return False
            self._remove_folder(self.path(key))
            return True

    def _remove_folder(self, path: Path) -> None:
        temporary = self._temporary_path()
        with _explained("cannot remove", path), contextlib.suppress(FileNotFoundError):
            os.rename(path, temporary)
            # Or a power cut could undo the rename, but not the removal of files that follows.
            _sync_folder(path.parent)
            shutil.rmtree(temporary, ignore_errors=True)

    def renew(self, folder: str, *, marker: str, older_s: float = RENEW_S) -> bool:
        """Set the marker's time to now unless it is young; False when there is none."""
        path = self.path(f"{folder}/{marker}")
        try:
            # By this machine's clock: a wrong one renews too early or removes nothing that is used.
            if abs(time.time() - path.stat().st_mtime) < older_s:
                return True
        except OSError:
            return False
        with held(self, folder_lease(folder)):
            return self.touch(f"{folder}/{marker}")

    def touch(self, key: str) -> bool:
        """Set a file's time to now, by the clock of the file system; False when there is none."""
        path = self.path(key)
        with _explained("cannot touch", path):
            try:
                os.utime(path)
            except FileNotFoundError:
                return False
            return True

    def used(self, key: str) -> None:
        """Set the file's time to now unless it is young; quietly."""
        path = self.path(key)
        # Not by `age_s`, which writes: a full disk must not keep anybody from reading.
        with contextlib.suppress(OSError):
            if abs(time.time() - path.stat().st_mtime) > RENEW_S:
                os.utime(path)

    def ages_s(self, folder: str) -> dict[str, float]:
        """Seconds since each file below `folder` was written or touched, by its key."""
        keys, ages = self.list(folder), {}
        present = self._now(self.path(folder))
        for key in keys:
            with contextlib.suppress(FileNotFoundError):
                ages[key] = present - os.stat(self.path(key)).st_mtime
        return ages

    def age_s(self, key: str) -> float:
        """Seconds since the file was written or touched; infinite when there is none."""
        path = self.path(key)
        present = self._now(path)
        with _explained("cannot read", path):
            try:
                return present - os.stat(path).st_mtime
            except FileNotFoundError:
                return float("inf")

    def _now(self, asked: Path) -> float:
        """The clock of the file system, in seconds since 1970."""
        with _explained("cannot write", asked):
            temporary = self._temporary_path()
            try:
                # Not synced: it need not outlive this call, and a slow disk would be asked at every look.
                os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
                return os.stat(temporary).st_mtime
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def clean(self, older_s: float = 86_400.0) -> int:
        """Remove what killed writers left more than `older_s` seconds ago; returns how many things."""
        folder, removed = self.root / TEMPORARY, 0
        present = self._now(folder)
        with _explained("cannot clean", folder), contextlib.suppress(FileNotFoundError):
            # No link, which whoever may write here could let lead anywhere.
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                for entry in list(os.scandir(descriptor)):
                    if present - entry.stat(follow_symlinks=False).st_mtime > older_s:
                        _remove(entry, descriptor)
                        removed += 1
            finally:
                os.close(descriptor)
        return removed

    def _info(self, key: str) -> fs.FileInfo:
        with _explained("cannot read", self.path(key)):
            return self._files.get_file_info(key)

    def _temporary_path(self) -> Path:
        folder = self.root / TEMPORARY
        self._make_folder(folder)
        return folder / uuid.uuid4().hex

    @contextlib.contextmanager
    def _temporary_file(self, target: Path, data: bytes) -> Iterator[Path]:
        """A synced file beside the store's own, gone afterwards unless it was renamed to `target`."""
        with _explained("cannot write", target):
            self._make_folder(target.parent)
            temporary = self._temporary_path()
            try:
                _write_synced(temporary, data)
                yield temporary
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def _make_folder(self, folder: Path) -> None:
        """Create a folder and those above it; each new name is synced into its parent."""
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
            _sync_folder(folder.parent)


def _remove(entry: os.DirEntry[str], folder: int) -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.name, ignore_errors=True, dir_fd=folder)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(entry.name, dir_fd=folder)


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(doing: str, path: Path) -> Iterator[None]:
    """Turn the file system's errors into the store's."""
    try:
        yield
    except OSError as error:
        raise _explain(error, doing, path) from error


def _explain(error: OSError, doing: str, path: Path) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            "no space is left on the disk of the store", path, "free space and run again: it continues"
        )
    if error.errno == errno.EROFS:
        fix = "make it writable and run again: it continues, or pass another --store"
        return StoreError(f"{doing} (the file system is read-only)", path, fix)
    if error.errno in (errno.EACCES, errno.EPERM):
        return StoreError(f"{doing} (permission denied)", path, "check who owns the store, or pass --store")
    if error.errno == errno.ENOENT:
        return NotFoundError("no such file in the store", path)
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return StoreError(f"{doing} ({reason})", path, "check the disk and the path, or pass another --store")
