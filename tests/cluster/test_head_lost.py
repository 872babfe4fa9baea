"""The head is lost, and nothing remembers it: a new cluster continues from the store, unasked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.store.store import Store
from tests.cluster.submitted import Submitted
from tests.jobs.heads import Head, connect, environment
from tests.pipeline import toys
from tests.pipeline.tiny import free_port

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(sys.platform != "linux", reason="ends Ray's processes by /proc"),
]
NETWORK = {"factory": "mlp", "kwargs": {"widths": [32], "dropout": 0.2}}
EPOCHS = 40


def test_a_new_head_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {
        "small": {"model": NETWORK, "training": {"epochs": 1}},
        "long": {"model": NETWORK, "training": {"epochs": EPOCHS, "lr": 0.01}},
    }
    file = toys.write(tmp_path / "run.yaml", models=models)
    port, store = free_port(), tmp_path / "store"
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    with environment() as folder:
        (folder / "one").mkdir()
        (folder / "two").mkdir()
        head = Head(folder / "one", port)
        try:
            connect(f"http://127.0.0.1:{port}")
            with Submitted(file, f"http://127.0.0.1:{port}", store) as run:
                run.wait_for("train", "small: trained: ")
                run.wait_for("train", "long: epoch 4 of")
                head.kill()
                head = Head(folder / "two", port)
                assert run.end() == 0, run.told
            with Submitted(file, f"http://127.0.0.1:{port}", tmp_path / "calm") as calm:
                assert calm.end() == 0, calm.told
        finally:
            head.stop()
    before, _, after = run.told.partition("ended without a result of its own (the cluster has lost it)")
    assert after, run.told
    assert "small: finished before" in after
    assert "long: goes on after epoch " in after
    assert before.count("long: epoch") + after.count("long: epoch") <= EPOCHS + 1, "at most one epoch twice"
    found, expected = Store(store), Store(tmp_path / "calm")
    assert {name: found.ref(name) for name in found.refs("toy/")} == {
        name: expected.ref(name) for name in expected.refs("toy/")
    }
