"""Bad input that only a running Ray can tell: resources that it lacks, and an occupied port."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from orchestrator.store.store import Store
from tests.deployments.toys import open_store
from tests.pipeline import toys
from tests.pipeline.command import command

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("ORCHESTRATOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=100 * 2**20,
            runtime_env={"env_vars": {"PYTHONPATH": os.getcwd()}},
        )
        try:
            yield
        finally:
            ray.shutdown()


def resources(**wanted: object) -> dict[str, object]:
    return {"small": {"model": {"factory": "mlp"}, "training": {"epochs": 1}, "resources": wanted}}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"cpus": 4096}, "it needs 1 x 4096 CPUs; the cluster has 2 CPUs"),
        ({"workers": 3}, "it needs 3 x 1 CPUs; the cluster has 2 CPUs"),
        ({"gpus": 64}, "it needs 1 x 64 GPUs"),
    ],
)
def test_a_model_that_can_never_be_placed(tmp_path: Path, wanted: dict[str, object], said: str) -> None:
    file = toys.write(tmp_path / "run.yaml", models=resources(**wanted))
    found = command("train", file, "--store", tmp_path / "store", "--json")
    text = found.sentence(2)
    assert "model 'small' can never be placed" in text
    assert said in text
    assert "set models.small.resources lower" in text
    assert found.document["kind"] == "ResourceError"
    assert not Store(tmp_path / "store").digests()


def test_a_trial_that_can_never_be_placed(tmp_path: Path) -> None:
    store = tmp_path / "store"
    file = toys.weights(tmp_path / "mine.safetensors")
    kept = command(
        *("import", "digits/mine", "--factory", "mlp", "--kwargs", toys.KWARGS, "--weights", file),
        *("--data", "digits", "--store", store, "--json"),
    ).document["digest"]
    search = {
        "parent": "mine",
        "trials": 2,
        "batch": 2,
        "cpus": 4096,
        "executions": ["lowered", "eager"],
        "latency": {"blocks": 5, "block_ms": 1},
    }
    run = toys.write(tmp_path / "run.yaml", models={"mine": {"ref": "digits/mine"}}, search=search)
    text = command("search", run, "--store", store).sentence(2)
    assert "a search trial needs more than any node has: 4096 of 2 cores" in text
    assert "lower search.cpus" in text
    Store(store).verify(kept)


def test_serving_on_an_occupied_port(tmp_path: Path) -> None:
    store, specs = open_store(tmp_path)
    for spec in specs[:2]:
        store.set_ref(f"toys/{spec.name}", store.put_spec(spec))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = command("serve", "toys", "--store", store.root, "--port", str(port), "--json")
    text = found.sentence(2)
    assert f"another process listens on the port: 127.0.0.1:{port}" in text
    assert found.document["kind"] == "PortInUseError"
