"""Boosting through the whole pipeline on a Ray of its own: trained, continued, evaluated and reported."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from orchestrator.config.ensemble import Boosting
from orchestrator.config.load import validate
from orchestrator.config.run import RunConfig
from orchestrator.config.training import Training
from orchestrator.pipeline.run import execute
from orchestrator.store.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.slow]

WAVES = "tests.training.test_offset:waves"


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        patch.setenv("RAY_TRAIN_METRICS_ENABLED", "0")
        patch.setenv("ORCHESTRATOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", os.getcwd())
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        yield
        ray.shutdown()


def config(task: str, rounds: int, **more: Any) -> RunConfig:
    values = {
        "name": "waves",
        "data": {"kind": "custom", "dataset": WAVES, "kwargs": {"task": task}, "task": task},
        "models": {
            "weak": {
                "model": {"factory": "mlp", "kwargs": {"widths": [8]}},
                "training": {"epochs": 10, "batch_size": 32, "optimizer": "adamw", "lr": 0.03},
            }
        },
        "ensembles": {
            "boosted": {
                "kind": "sequential",
                "policy": "boosting",
                "base": "weak",
                "rounds": rounds,
                "shrinkage": 0.8,
                "quorum": 1,
                **more,
            },
            "beside": {"kind": "weighted_mix", "members": ["weak", "boosted"]},
        },
        "latency": {"blocks": 5, "block_ms": 1},
        "serving": None,
    }
    return validate(RunConfig, values, "waves.yaml")


def tree_of(store: Store) -> Boosting:
    found = store.spec(store.ref("waves/boosted")).tree
    assert isinstance(found, Boosting)
    return found


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_stages_are_trained_one_after_the_other_and_taken_from_the_store(task: str, tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    execute(config(task, 2), until="ensemble", store=root)
    store = Store(root)
    short = tree_of(store)
    before = {path: path.stat().st_mtime_ns for path in (store.root / "artifacts").rglob("*.*")}

    longer = config(task, 3)
    summary = execute(longer, store=root)
    tree = tree_of(store)
    assert [stage.digest for stage in tree.members[:2]] == [stage.digest for stage in short.members]
    assert (
        before.items()
        <= {path: path.stat().st_mtime_ns for path in (store.root / "artifacts").rglob("*.*")}.items()
    ), "a finished stage was trained again"
    assert [member.name for member in tree.members] == ["weak", "boosted-2", "boosted-3"]
    assert store.ref("waves/boosted-3") == tree.members[2].digest
    losses = tree.train_losses
    assert losses is not None
    assert all(later < earlier for earlier, later in itertools.pairwise(losses)), losses
    assert tree.expected is not None
    # What the report says of a stage is about the sum up to it.
    told = summary["ensembles"]["boosted"]
    assert told["kind"] == "sequential"
    members = told["contributions"]["members"]
    assert [member["weight"] for member in members] == [None] * 3
    assert members[2]["metric"] == pytest.approx(told["metric"]["value"], rel=1e-5)
    assert (tmp_path / "waves" / "report.html").exists()
    if task == "classification":
        quick = longer.models["weak"].model_copy(update={"training": Training(epochs=1)})
        more = longer.model_copy(update={"models": {**longer.models, "late": quick}})
        again = execute(more, until="ensemble", store=root)  # trains the one model that is not finished
        assert list(again["models"]) == ["weak", "late"]
        assert again["ensembles"]["boosted"] == store.ref("waves/boosted")
