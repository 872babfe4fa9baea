"""The node-wide cache: one folder per data set and seed, complete or absent.

A folder is written under another name and renamed when it is whole. A lock file lets one process of
the node decode while the others wait; the kernel drops the lock of a process that dies.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.config.signature import Signature
from orchestrator.data.build import dataset_digest, part_digest, read_parts
from orchestrator.data.dataset import Dataset
from orchestrator.data.stream import Stream
from orchestrator.errors import DataError, DiskFullError
from orchestrator.store.budget import Entry, evict
from orchestrator.store.holds import hold, is_held

SCHEMA = 2
"""Raised whenever the same settings would give other files: part of every key."""


CACHE_VARIABLE = "ORCHESTRATOR_CACHE"


def default_cache() -> Path:
    """`ORCHESTRATOR_CACHE`, or `~/.cache/orchestrator/data`."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "orchestrator" / "data"


def get_or_build(cache: Path, key: str, build: Callable[[Path], dict[str, Any]]) -> Dataset:
    """The data set under `key`, built by `build(folder)` if it is absent or damaged.

    Args:
        cache: folder of all data sets; created when missing.
        key: name of this one.
        build: writes the parts into a folder and returns the content of `meta.json`.

    Raises:
        DiskFullError: no space is left for the cache.
        DataError: the cache folder cannot be written.
    """
    folder = cache / key
    with _writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{key}.lock"):
            found = _whole(folder)
            if found is not None:
                _use(folder)
                return found
            for remains in [folder, *cache.glob(f".{key}-*")]:
                if remains.exists():
                    shutil.rmtree(remains)
            _publish(folder, build)
            _use(folder)
    return open_cached(folder)


def trim(cache: Path, limit_bytes: int) -> list[str]:
    """Remove the least recently used data sets until the others fit; names of those removed.

    Args:
        cache: folder of all data sets.
        limit_bytes: of all files.
    """
    if not cache.is_dir():
        return []
    now, entries = time.time(), []
    for folder in cache.iterdir():
        meta = folder / "meta.json"
        if folder.name.startswith(".") or not meta.is_file():
            continue
        with suppress(FileNotFoundError):  # another process has just removed it
            idle_s = now - meta.stat().st_mtime
            size = sum(path.stat().st_size for path in folder.iterdir())
            entries.append(Entry(folder.name, size, idle_s, partial(is_held, meta), partial(_remove, folder)))
    return evict(entries, limit_bytes)


def _remove(folder: Path) -> None:
    with _locked(folder.with_name(f"{folder.name}.lock")):
        if is_held(folder / "meta.json"):
            return
        draft = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
        with suppress(FileNotFoundError):  # another process was first
            folder.rename(draft)
        shutil.rmtree(draft, ignore_errors=True)


def _use(folder: Path) -> None:
    """Note that the data set is used now, and by this process until it ends."""
    meta = folder / "meta.json"
    hold(meta)
    with suppress(OSError):
        os.utime(meta)


def open_cached(folder: Path) -> Dataset:
    """Open a cache folder: memory-mapped, nothing is decoded, checked or copied.

    Raises:
        DataError: the folder is missing or not whole.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        signature = Signature.model_validate(meta["signature"])
        parts = read_parts(folder)
        if meta["schema"] != SCHEMA or meta["facts"]["rows"] != {
            name: len(part) for name, part in parts.items()
        }:
            raise ValueError("files do not fit meta.json")
        hold(folder / "meta.json")
        return Dataset(parts, signature, meta["digest"], meta["facts"], folder, Stream.load(folder))
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise DataError(
            f"not a whole data cache ({type(error).__name__})",
            folder,
            "load the data again on this machine: it is then rebuilt",
        ) from error


def _whole(folder: Path) -> Dataset | None:
    """The data set if every row of it still has the digest that was recorded."""
    try:
        found = open_cached(folder)
    except DataError:
        return None
    digests = {name: part_digest(part) for name, part in found.parts.items()}
    digest = dataset_digest(found.signature, digests, found.stream)
    return found if digests == found.facts["row_digests"] and digest == found.digest else None


def _publish(folder: Path, build: Callable[[Path], dict[str, Any]]) -> None:
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        meta = build(draft)
        for path in draft.iterdir():
            _sync(path)
        (draft / "meta.json").write_text(json.dumps({"schema": SCHEMA, **meta}, indent=1), encoding="utf-8")
        _sync(draft / "meta.json")
        _sync(draft)
        draft.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _writing(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                "no space is left for the data cache",
                cache,
                "free some, or set ORCHESTRATOR_CACHE to a folder on another disk",
            ) from error
        raise DataError(
            f"cannot write the data cache ({error.strerror or error})",
            error.filename or cache,
            "set ORCHESTRATOR_CACHE to a folder that can be written",
        ) from error
