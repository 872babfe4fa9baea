"""Releases that change on Ray Serve under load: two ingress replicas that hold members, and members apart."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from ray import serve

from deployments.local import APPLICATION, serve_locally
from deployments.members import ADDED
from orchestrator.client import Client
from orchestrator.config.ensemble import Spec, WeightedMix
from orchestrator.config.serving import AppSettings, ServingSettings
from orchestrator.errors import OrchestratorError
from orchestrator.pipeline.releasing import ADMIN_S
from orchestrator.store import releases
from orchestrator.store.store import Store
from tests.deployments.rays import local_ray
from tests.deployments.test_serving import free_port
from tests.deployments.toys import DIGITS, IMAGES, SMALL_MLP, in_process, put

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Store]]:
    store = Store(tmp_path_factory.mktemp("rollout") / "store")
    for name, kind in (("together", "here"), ("apart", "far")):
        members = tuple(put(store, f"{kind}{seed}", SMALL_MLP, DIGITS, seed) for seed in (0, 1))
        tree = WeightedMix(members=members, weights=(0.5, 0.5))
        store.set_ref(f"toys/{name}", store.put_spec(Spec(name=name, tree=tree, signature=DIGITS)))
    port = free_port()
    here: dict[str, Any] = {name: {"placement": "fused", "cpus": 0} for name in ("here0", "here1")}
    apart: dict[str, Any] = {name: {"replicas": 1, "cpus": 0} for name in ("far0", "far1")}
    serving = ServingSettings.model_validate(
        {"port": port, "replicas": 2, "compile": False, "members": here | apart}
    )
    settings = AppSettings(store=str(store.root), refs=("toys/together", "toys/apart"), serving=serving)
    with local_ray(), serve_locally(settings, ready_s=300) as url:
        yield url, store


class Load:
    """Clients that ask without pause, for the length of a block."""

    def __init__(self, url: str, model: str, clients: int = 3) -> None:
        self._url = f"{url}/v2/models/{model}/infer"
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        self.replies: list[dict[str, Any]] = []
        self.failed: list[str] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        rows = IMAGES[:1]
        tensor = {"name": "input", "shape": rows.shape, "datatype": "UINT8", "data": rows.ravel().tolist()}
        with httpx.Client(timeout=30) as client:
            while not self._over.is_set():
                got = client.post(self._url, content=json.dumps({"inputs": [tensor]}))
                if got.status_code == 200:
                    self.replies.append(got.json())
                else:
                    self.failed.append(got.text)

    def check(self, store: Store, digests: Sequence[str]) -> None:
        """No request failed, and each reply is that of the epoch that it names."""
        assert self.failed == []
        truth = {}
        for digest in digests:
            spec = releases.read(store, digest).spec
            truth[spec.weight_epoch] = in_process(store, spec, IMAGES[:1]).probs
        for reply in self.replies:
            (found,) = [one["data"] for one in reply["outputs"] if one["name"] == "probabilities"]
            expected = truth[reply["parameters"]["weight_epoch"]]
            assert expected is not None
            np.testing.assert_allclose([found], expected, atol=1e-5)
        assert {reply["parameters"]["weight_epoch"] for reply in self.replies} == set(truth)
        assert len({reply["model_version"] for reply in self.replies}) == len(truth)


def change(url: str, model: str, what: str, body: dict[str, Any]) -> str:
    with Client(url, deadline_s=ADMIN_S) as client:
        return str(client.send("POST", f"/admin/models/{model}/{what}", json.dumps(body).encode())["release"])


@pytest.mark.parametrize("model", ["together", "apart"])
def test_weights_change_and_go_back_under_load(running: tuple[str, Store], model: str) -> None:
    url, store = running
    first = releases.live(store, f"toys/{model}").value
    with Load(url, model) as load:
        time.sleep(0.5)
        second = change(url, model, "weights", {"weights": [0.1, 0.9]})
        time.sleep(0.5)
        assert change(url, model, "rollback", {}) == first
        third = change(url, model, "weights", {"weights": [0.9, 0.1]})
        time.sleep(0.5)
    load.check(store, [first, second, third])
    with Client(url) as client:
        replicas = client.send("GET", f"/admin/models/{model}")["replicas"]
        assert [one["live"] for one in replicas] == [third] * (2 if model == "together" else 1)
        found = client.metadata(model)["versions"]
    versions = {one["parameters"]["weight_epoch"]: one["model_version"] for one in load.replies}
    assert found == [versions[2]]


@pytest.mark.parametrize("model", ["together", "apart"])
def test_another_member_takes_over_under_load(running: tuple[str, Store], model: str) -> None:
    url, store = running
    tree = store.spec(f"toys/{model}").tree
    assert isinstance(tree, WeightedMix)
    new = put(store, f"new-{model}", SMALL_MLP, DIGITS, 9)
    other = tree.model_copy(update={"members": (tree.members[0], new)})
    spec = store.spec(f"toys/{model}").model_copy(update={"tree": other})
    store.set_ref(f"toys/{model}-next", store.put_spec(spec))
    first = releases.live(store, f"toys/{model}").value
    with Load(url, model) as load:
        time.sleep(0.5)
        second = change(url, model, "promote", {"spec": f"toys/{model}-next"})
        time.sleep(0.5)
        added = [name for name in serve.status().applications if ADDED in name]
        assert len(added) == (model == "apart")
        assert change(url, model, "rollback", {"release": first}) == first
        time.sleep(0.5)
    load.check(store, [first, second])
    deadline = time.monotonic() + 20
    while any(ADDED in name for name in serve.status().applications):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_replica_that_starts_again_takes_the_live_release(running: tuple[str, Store]) -> None:
    url, store = running
    new = put(store, "newer", SMALL_MLP, DIGITS, 11)
    store.set_ref("toys/newer", store.put_spec(store.spec("toys/apart").model_copy(update={"tree": new})))
    live = change(url, "apart", "promote", {"spec": "toys/newer"})
    with Client(url) as client:
        (state,) = client.send("GET", "/admin/models/apart")["replicas"]
        deployment, _, replica = state["replica"].partition("#")
        actor = f"SERVE_REPLICA::{APPLICATION}#{deployment.rpartition(':')[2]}#{replica}"
        ray.kill(ray.get_actor(actor, namespace="serve"))
        deadline = time.monotonic() + 60
        while True:
            try:
                (again,) = client.send("GET", "/admin/models/apart")["replicas"]
                break
            except OrchestratorError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        assert again["replica"] != state["replica"]
        assert (again["live"], again["problem"]) == (live, "")
    with Load(url, "apart", clients=1) as load:
        time.sleep(0.3)
    load.check(store, [live])
