"""Files are written whole or not at all, and what fails leaves nothing behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import keys
from orchestrator.errors import StoreError
from orchestrator.files import write_whole
from orchestrator.store import compiled, signing


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_whole(path, "new"),
        lambda path: compiled._copy(path, b"new"),
        lambda path: keys.add(path, "b", "data"),
        lambda path: signing.make_key(path),
    ],
    ids=["any", "compiled", "keys", "signing"],
)
def test_a_full_disk_leaves_what_was_there(
    write: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    keys.add(path, "a", "data")
    before = path.read_bytes(), {*tmp_path.iterdir()}
    for name in ("replace", "link"):
        monkeypatch.setattr(os, name, _full)
    for _ in range(2):
        with pytest.raises((OSError, StoreError)):
            write(path)
    assert (path.read_bytes(), {*tmp_path.iterdir()}) == before


def test_what_is_written_and_who_may_read_it(tmp_path: Path) -> None:
    for data in ("ä" * 10_000, b"x"):
        write_whole(tmp_path / "file", data, 0o600)
    assert (tmp_path / "file").read_bytes() == b"x"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 1
