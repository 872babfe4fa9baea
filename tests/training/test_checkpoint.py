"""Epochs kept in the store: written there and nowhere else, and read again as they were."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from orchestrator.store.store import Store
from orchestrator.training.checkpoint import Checkpoint
from orchestrator.training.state import FACTS, TENSORS, TrainState
from tests.training.toy import FEATURES, QUICK, digest, module_of, run


def test_states_go_to_the_store_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's /tmp may be smaller than a state."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    settings = QUICK.model_copy(update={"epochs": 4, "patience": 3, "schedule": "constant"})
    _, state = run(module_of(FEATURES), FEATURES, settings)
    kept = Checkpoint(Store(tmp_path / "store"), "work")
    kept.save(state)
    found = kept.load()
    assert found is not None
    assert (found.epoch, found.curve, found.finished) == (state.epoch, state.curve, state.finished)
    for group in ("model", "optimizer", "best"):
        assert digest(getattr(found, group)) == digest(getattr(state, group))

    state.save(tmp_path / "files")
    assert {name: (tmp_path / "files" / name).read_bytes() for name in (TENSORS, FACTS)} == state.files()


def test_of_two_states_the_last_whole_one_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for epoch in (1, 2):
        for name, data in TrainState(epoch=epoch).files().items():
            store.blobs.put(f"checkpoints/work/{epoch:06d}-{name}", data[: len(data) // epoch])
    found = Checkpoint(store, "work").load()
    assert found is not None
    assert found.epoch == 1
