"""The overhead benchmark: both arms end with the same models."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.overhead import MODELS, in_process, rows, settings
from orchestrator.store.store import Store


def test_made_up_images_can_be_told_apart_by_their_class_means() -> None:
    images, labels = rows(400)
    means = [images[labels == label].mean(axis=0) for label in range(10)]
    nearest = [min(range(10), key=lambda k: float(abs(image - means[k]).sum())) for image in images[:100]]
    assert sum(map(int.__eq__, nearest, labels[:100].tolist())) > 90


@pytest.mark.slow
def test_the_run_goes_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    in_process(settings(None, count=200, epochs=1), tmp_path)
    store = Store(tmp_path / "store")
    assert len({store.ref(f"overhead/{name}") for name in MODELS}) == len(MODELS)
