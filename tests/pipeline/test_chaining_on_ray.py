"""A chain through the whole pipeline on a Ray of its own: trained, fitted, evaluated and reported."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from orchestrator.config.ensemble import Chain, Member
from orchestrator.config.load import validate
from orchestrator.config.run import RunConfig
from orchestrator.pipeline.run import execute
from orchestrator.store.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.slow]


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


def test_a_chain_is_trained_by_ray_train_and_evaluated(tmp_path: Path) -> None:
    recipe = {"epochs": 2, "batch_size": 64, "optimizer": "adamw", "lr": 0.01}
    small = {"factory": "mlp", "kwargs": {"widths": [16]}}
    values = {
        "name": "chained",
        "data": {"kind": "embedded", "limit": 400},
        "models": {"first": {"model": small, "training": recipe}},
        "ensembles": {
            "chain": {
                "kind": "sequential",
                "policy": "chain",
                "members": ["first"],
                "later": [{"model": small, "training": recipe}],
                "folds": 2,
                "calibration": "temperature",
            },
            "beside": {"kind": "weighted_mix", "members": ["first", "chain"]},
        },
        "latency": {"blocks": 5, "block_ms": 1},
        "serving": None,
    }
    root = str(tmp_path / "store")
    summary = execute(validate(RunConfig, values, "chained.yaml"), store=root)
    store = Store(root)
    tree = store.spec(store.ref("chained/chain")).tree
    assert isinstance(tree, Chain)
    last = tree.members[-1]
    assert isinstance(last, Member)
    assert store.ref("chained/chain-1") == last.digest
    manifest = store.manifest(last.digest)
    assert manifest.what["sees"] == [tree.members[0].digest]  # type: ignore[union-attr]
    assert manifest.signature.input_shape == (64 + 10,)
    told = summary["ensembles"]["chain"]
    assert told["kind"] == "sequential"
    assert told["members"].keys() == {"first", "chain-1"}
    assert told["members"]["chain-1"] == pytest.approx(told["metric"]["value"])
    assert summary["ensembles"]["beside"]["members"].keys() == {"first", "chain-1"}
    assert told["latency_ms"]["median"] > 0
    assert (tmp_path / "chained" / "report.html").exists()
