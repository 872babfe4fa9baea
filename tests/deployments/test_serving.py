"""Everything for real: Ray Serve on a free port, and the protocol's own client."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from deployments import local
from deployments.build import build_app
from deployments.local import APPLICATION, check_port, serve_locally
from deployments.protocol.model import describe
from orchestrator.config.ensemble import Spec, leaves
from orchestrator.config.serving import AppSettings, ServingSettings
from orchestrator.errors import ClusterError, PortInUseError, ServingError
from orchestrator.store.store import Store
from tests.deployments.toys import in_process, open_store, rows_of

ROOT = Path(__file__).parents[2]
NAMES = ("alone", "average", "boosted", "cascade", "mix", "table")
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True)
class Running:
    client: Any
    port: int
    store: Store
    specs: dict[str, Spec]
    settings: AppSettings


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100 * 2**20,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
        try:
            yield
        finally:
            ray.shutdown()


@pytest.fixture(scope="module")
def running(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:  # noqa: ARG001
    store, specs = open_store(tmp_path_factory.mktemp("serving"))
    port = free_port()
    settings = AppSettings(
        store=str(store.root),
        specs=specs,
        serving=ServingSettings(port=port, max_body_bytes=16_384, deadline_s=20),
    )
    with serve_locally(settings, ready_s=300) as url:
        assert url == f"http://127.0.0.1:{port}"
        client = InferenceServerClient(f"127.0.0.1:{port}", concurrency=4)
        try:
            yield Running(client, port, store, {spec.name: spec for spec in specs}, settings)
        finally:
            client.close()
    assert serve.status().applications == {}
    check_port("127.0.0.1", port)


def test_serving_needs_ray(tmp_path: Path) -> None:
    store, specs = open_store(tmp_path)
    settings = AppSettings(store=str(store.root), specs=specs)
    with pytest.raises(ClusterError, match="not connected"), serve_locally(settings):
        raise AssertionError


def test_an_occupied_port_is_one_sentence(tmp_path: Path, cluster: None) -> None:  # noqa: ARG001
    store, specs = open_store(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        settings = AppSettings(store=str(store.root), specs=specs, serving=ServingSettings(port=port))
        with pytest.raises(PortInUseError, match=f"127.0.0.1:{port}. stop it or"), serve_locally(settings):
            raise AssertionError
        assert serve.status().proxies == {}


def test_leftovers_are_removed_and_a_start_that_fails_says_why(tmp_path: Path, cluster: None) -> None:  # noqa: ARG001
    store, specs = open_store(tmp_path)
    port = free_port()
    (weights,) = (store.root / "artifacts" / leaves(specs[0].tree)[-1].digest).glob("*.safetensors")
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    settings = AppSettings(store=str(store.root), specs=specs[:1], serving=ServingSettings(port=port))
    local._start(build_app(settings), "127.0.0.1", port)  # as a program does that is killed afterwards
    with (
        pytest.raises(ServingError, match=r"weights\.safetensors of the artifact is damaged"),
        serve_locally(settings, ready_s=300),
    ):
        raise AssertionError
    assert serve.status().applications == {}
    check_port("127.0.0.1", port)


def test_a_stock_client_gets_live_ready_and_metadata(running: Running) -> None:
    assert running.client.is_server_live()
    assert running.client.is_server_ready()
    assert running.client.get_server_metadata()["name"] == "orchestrator"
    assert [entry["state"] for entry in running.client.get_model_repository_index()] == ["READY"] * len(NAMES)
    for name, spec in running.specs.items():
        assert running.client.is_model_ready(name)
        assert running.client.get_model_metadata(name) == describe(spec).metadata()


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("count", [1, 7, 24])
@pytest.mark.parametrize("name", NAMES)
def test_served_answers_are_the_in_process_ones(
    running: Running, name: str, count: int, binary: bool
) -> None:
    spec = running.specs[name]
    rows = rows_of(spec)[:count]
    model = describe(spec)
    tensor = InferInput("input", list(rows.shape), model.input.datatype)
    tensor.set_data_from_numpy(rows, binary_data=binary)
    wanted = None if binary else [InferRequestedOutput(o.name, binary_data=False) for o in model.outputs]
    result = running.client.infer(name, [tensor], outputs=wanted, request_id="r1")
    expected = in_process(running.store, spec, rows)
    facts = result.get_response()
    assert facts["id"] == "r1"
    assert facts["model_version"] == model.version
    assert facts["parameters"]["weight_epoch"] == spec.weight_epoch
    assert facts["parameters"]["degraded"] is False
    used = [member.name for member, mask in expected.members.items() if mask.any()]
    assert facts["parameters"]["members"] == ",".join(used)
    if expected.probs is None:
        np.testing.assert_allclose(result.as_numpy("values"), expected.outputs, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_allclose(result.as_numpy("probabilities"), expected.probs, atol=1e-5)
        np.testing.assert_array_equal(result.as_numpy("label"), expected.probs.argmax(axis=1))


def test_the_cascade_really_exits_early(running: Running) -> None:
    spec = running.specs["cascade"]
    stages = in_process(running.store, spec, rows_of(spec)).stages
    assert 0 < (stages == 0).sum() < len(stages)


def test_many_clients_at_once(running: Running) -> None:
    spec = running.specs["mix"]
    rows = rows_of(spec)
    expected = in_process(running.store, spec, rows).probs
    assert expected is not None

    def send(row: np.ndarray) -> Any:
        tensor = InferInput("input", [1, 1, 8, 8], "UINT8")
        tensor.set_data_from_numpy(row[None])
        return running.client.async_infer("mix", [tensor])

    for wait, probs in zip([send(row) for row in rows], expected, strict=True):
        np.testing.assert_allclose(wait.get_result().as_numpy("probabilities")[0], probs, atol=1e-5)


def post(port: int, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, body, headers)
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


def test_bad_requests_are_json_errors(running: Running) -> None:
    status, found = post(running.port, "/v2/models/mix/infer", b"{")
    assert status == 400
    assert "not valid JSON" in found["error"]
    status, found = post(running.port, "/v2/models/mix/infer", b" " * 20_000)
    assert status == 413
    status, found = post(running.port, "/v2/models/other/infer", b"{}")
    assert status == 404
    assert "served here: average, cascade, mix, table, alone" in found["error"]
    status, found = post(running.port, "/v3", b"")
    assert status == 404
    assert list(found) == ["error"]


def test_the_client_shows_our_errors(running: Running) -> None:
    tensor = InferInput("input", [1, 1, 8, 7], "UINT8")
    tensor.set_data_from_numpy(np.zeros((1, 1, 8, 7), np.uint8))
    with pytest.raises(InferenceServerException, match=r"\[400\] shape must be \[rows >= 1, 1, 8, 8\]"):
        running.client.infer("mix", [tensor])
    with pytest.raises(InferenceServerException, match=r"\[404\] no such model"):
        running.client.get_model_metadata("other")
    assert not running.client.is_model_ready("other")


def test_a_second_program_on_the_cluster_is_refused(running: Running) -> None:
    with pytest.raises(ServingError, match="another program already serves"), serve_locally(running.settings):
        raise AssertionError
    assert running.client.is_server_ready()
    assert list(serve.status().applications) == [APPLICATION]
