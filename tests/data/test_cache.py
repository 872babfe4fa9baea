"""The cache: whole or absent, decoded once, checked, rebuilt when damaged."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import orchestrator.data.build as build_module
from orchestrator.config.data import EmbeddedData
from orchestrator.config.imports import code_digest
from orchestrator.data import cache
from orchestrator.data.load import default_cache, load, open_cached
from orchestrator.errors import DataError, DiskFullError
from tests.data import toy

LOADER = """
import sys
from pathlib import Path
from orchestrator.data.load import load
from tests.data import toy
path, cache = Path(sys.argv[1]), Path(sys.argv[2])
name = "tests.data.toy:logged"
print(load(toy.settings(path, transform=name), seed=0, cache=cache, allowed=[name]).digest)
"""


def loader(tmp_path: Path, sleep: float) -> subprocess.Popen[str]:
    """Another process that loads the same file; each decoding writes a line to `log`."""
    root = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": root,
        "TOY_LOG": str(tmp_path / "log"),
        "TOY_SLEEP": str(sleep),
    }
    command = [sys.executable, "-c", LOADER, str(tmp_path / "a.parquet"), str(tmp_path / "cache")]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_parts_are_mapped_and_read_only(tmp_path: Path) -> None:
    loaded = load(EmbeddedData(), seed=0, cache=tmp_path)
    dataset = open_cached(loaded.folder)
    assert dataset.digest == loaded.digest
    assert dataset.signature == loaded.signature
    for part in dataset.parts.values():
        for array in (part.inputs, part.targets, part.ids):
            assert isinstance(array, np.memmap)
            assert array.flags.c_contiguous
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0


def test_second_load_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(EmbeddedData(), seed=0, cache=tmp_path)
    monkeypatch.setattr(build_module, "_write_inputs", lambda *_: pytest.fail("decoded again"))
    assert load(EmbeddedData(), seed=0, cache=tmp_path).digest == first.digest


def test_a_changed_file_is_decoded_again(tmp_path: Path) -> None:
    path = toy.image_file(tmp_path / "a.parquet", toy.pixels(seed=0))
    before = os.stat(path)
    first = load(toy.settings(path), seed=0, cache=tmp_path / "cache")
    toy.image_file(path, toy.pixels(seed=1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = load(toy.settings(path), seed=0, cache=tmp_path / "cache")
    assert first.digest != second.digest
    assert first.folder != second.folder


@pytest.mark.parametrize(
    "damage",
    ["flip", "cut", "remove", "meta", "target"],
)
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, damage: str) -> None:
    first = load(EmbeddedData(), seed=0, cache=tmp_path)
    file = first.folder / "train.inputs.npy"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(data[:-100])
    elif damage == "remove":
        file.unlink()
    elif damage == "meta":
        (first.folder / "meta.json").write_text('{"schema": 1')
    else:
        other = np.load(first.folder / "test.targets.npy")
        np.save(first.folder / "test.targets.npy", other[::-1].copy())
    again = load(EmbeddedData(), seed=0, cache=tmp_path)
    assert again.digest == first.digest
    assert open_cached(again.folder).facts == first.facts


def test_an_edited_signature_is_noticed(tmp_path: Path) -> None:
    first = load(EmbeddedData(), seed=0, cache=tmp_path)
    meta = json.loads((first.folder / "meta.json").read_text())
    meta["signature"]["mean"] = [0.0]
    (first.folder / "meta.json").write_text(json.dumps(meta))
    assert load(EmbeddedData(), seed=0, cache=tmp_path).signature == first.signature


def test_open_cached_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a whole data cache"):
        open_cached(tmp_path / "none")


@pytest.mark.slow
def test_processes_at_the_same_time_decode_once(tmp_path: Path) -> None:
    toy.image_file(tmp_path / "a.parquet")
    processes = [loader(tmp_path, sleep=0.3) for _ in range(3)]
    said = [process.communicate(timeout=120) for process in processes]
    assert all(process.returncode == 0 for process in processes), said
    assert len({out for out, _ in said}) == 1
    # 60 rows are one block.
    assert (tmp_path / "log").read_text() == "called\n"


@pytest.mark.slow
def test_a_killed_loader_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    toy.image_file(tmp_path / "a.parquet")
    killed = loader(tmp_path, sleep=120)
    wait_for(tmp_path / "log")
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert [path.name[0] for path in (tmp_path / "cache").iterdir() if path.is_dir()] == ["."]
    after = loader(tmp_path, sleep=0)
    out, error = after.communicate(timeout=120)
    assert after.returncode == 0, error
    folders = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(folders) == 1
    assert open_cached(folders[0]).digest == out.strip()


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(DiskFullError, match="ORCHESTRATOR_CACHE") as found:
            load(EmbeddedData(), seed=0, cache=tmp_path)
    assert found.value.exit_code == 1
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    assert load(EmbeddedData(), seed=0, cache=tmp_path).signature.outputs == 10


def test_default_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("ORCHESTRATOR_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "orchestrator" / "data"


def test_two_processes_may_trim_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each lists the same data sets; what the other has removed meanwhile is no error."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta.json").write_text("{}")
        os.utime(tmp_path / name / "meta.json", (0, 0))
    remove = cache._remove

    def late(folder: Path) -> None:
        remove(folder)  # the other process
        remove(folder)

    monkeypatch.setattr(cache, "_remove", late)
    assert sorted(cache.trim(tmp_path, 0)) == ["a", "b"]
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_transform_s_code_is_that_of_the_file_it_is_written_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its package only hands it on."""
    package = tmp_path / "handed_on"
    package.mkdir()
    (package / "__init__.py").write_text("from handed_on.written import halved\n")
    (package / "written.py").write_text("def halved(inputs):\n    return inputs / 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("handed_on")
    before = code_digest("handed_on:halved")
    assert code_digest("handed_on:halved") == before
    (package / "written.py").write_text("def halved(inputs):\n    return inputs / 4\n")
    assert code_digest("handed_on:halved") != before
