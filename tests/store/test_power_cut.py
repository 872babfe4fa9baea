"""Each prefix of what a writer asks of the disk, unsynced data dropped, leaves a whole artifact or none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import ForeignStoreError, NotFoundError
from orchestrator.store.artifacts import MANIFEST
from orchestrator.store.local import LocalBlobs
from orchestrator.store.store import Store
from tests.store.power_cut import Disk, lay_out, visible
from tests.store.toys import D1, D2, draft, tensors


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    (tmp_path / "store").mkdir()
    found = Disk(tmp_path / "store")
    found.recording(monkeypatch)
    return found


def _each(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: Callable[[Store], None]) -> int:
    """Show every state that is a store to `look`; how many there were."""
    monkeypatch.undo()
    shown = 0
    for number, tree in enumerate(disk.states):
        root = tmp_path / f"state{number}"
        lay_out(visible(tree), root)
        try:
            store = Store(root, create=False)
        except (NotFoundError, ForeignStoreError):
            assert "store.json" not in tree or tree["store.json"] == b"", "the marker is whole or empty"
            assert not any(name.startswith(("artifacts/", "refs/")) for name in tree)
            continue
        look(store)
        shown += 1
    return shown


def test_publication_of_an_artifact(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = Store(tmp_path / "store").put_artifact(draft(), tensors())
    assert f"artifacts/{digest}/{MANIFEST}" in disk.sure, "once it is said to be stored, it is"
    assert {"write", "fsync", "rename", "link"} <= set(disk.calls)
    seen = set()

    def look(store: Store) -> None:
        folder = store.root / "artifacts" / digest
        assert not folder.exists() or sorted(os.listdir(folder)) == [MANIFEST, "weights.safetensors"]
        assert store.digests() in ([], [digest])
        for one in store.digests():
            store.verify(one)
        seen.add(len(store.digests()))

    assert _each(disk, tmp_path, monkeypatch, look) > 1
    assert seen == {0, 1}


def test_refs_and_stages(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    store.set_ref("a/b", D1)
    one = disk.sure
    store.set_ref("a/b", D2)
    store.stage("k", lambda: "value")
    assert sum(name.startswith("refs/a/b/") for name in one) == 1
    assert sum(name.startswith("refs/a/b/") for name in disk.sure) == 2
    seen = set()

    def look(store: Store) -> None:
        values = tuple(entry.value for entry in store.ref_history("a/b"))
        assert values in ((), (D1,), (D1, D2))
        seen.add((values, store.stage_result("k")))

    _each(disk, tmp_path, monkeypatch, look)
    assert seen == {((), None), ((D1,), None), ((D1, D2), None), ((D1, D2), "value")}


@pytest.mark.parametrize("older_s", [None, -1.0])
def test_removal(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older_s: float | None) -> None:
    store = Store(tmp_path / "store")
    digest = store.put_artifact(draft(), tensors())
    assert isinstance(store.blobs, LocalBlobs)
    assert store.blobs.delete_folder(f"artifacts/{digest}", marker=MANIFEST, older_s=older_s)
    assert not any(name.startswith("artifacts/") for name in disk.sure)

    def look(store: Store) -> None:
        for one in store.digests():
            store.verify(one)
        assert all(len(os.listdir(path)) == 2 for path in (store.root / "artifacts").glob("*"))

    _each(disk, tmp_path, monkeypatch, look)


def test_the_model_finds_a_writer_that_does_not_sync(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.store.local.os.fsync", lambda _: None)
    digest = Store(tmp_path / "store").put_artifact(draft(), tensors())
    assert disk.sure == {}
    torn = [tree for tree in disk.states if tree.get(f"artifacts/{digest}/{MANIFEST}") == b""]
    assert torn, "a name without its bytes"
