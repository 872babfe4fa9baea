"""Everything for real: Ray Serve on a free port, and the protocol's own client."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from deployments import local
from deployments.build import build_app
from deployments.local import APPLICATION, check_port, serve_locally
from deployments.page import site
from deployments.protocol.model import describe
from orchestrator import keys
from orchestrator.config.access import AccessSettings, TlsSettings
from orchestrator.config.ensemble import Spec, leaves
from orchestrator.config.serving import AppSettings, ServingSettings
from orchestrator.errors import ClusterError, PortInUseError, ServingError
from orchestrator.store.store import Store
from tests.deployments.pictures import png
from tests.deployments.rays import local_ray
from tests.deployments.toys import in_process, open_store, rows_of

NAMES = ("alone", "average", "boosted", "cascade", "chained", "mix", "table")
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True)
class Running:
    client: Any
    port: int
    grpc_port: int
    store: Store
    specs: dict[str, Spec]
    settings: AppSettings


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray():
        yield


@pytest.fixture(scope="module")
def running(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:  # noqa: ARG001
    store, specs = open_store(tmp_path_factory.mktemp("serving"))
    port, grpc_port = free_port(), free_port()
    settings = AppSettings(
        store=str(store.root),
        specs=specs,
        serving=ServingSettings(port=port, grpc_port=grpc_port, max_body_bytes=16_384, deadline_s=20),
    )
    with serve_locally(settings, ready_s=300) as url:
        assert url == f"http://127.0.0.1:{port}"
        client = InferenceServerClient(f"127.0.0.1:{port}", concurrency=4)
        try:
            yield Running(client, port, grpc_port, store, {spec.name: spec for spec in specs}, settings)
        finally:
            client.close()
    assert serve.status().applications == {}
    check_port("127.0.0.1", port)


# Until `running` is asked for: these start, stop and clear servers of their own.


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
    local._start(build_app(settings))  # as a program does that is killed afterwards
    with (
        pytest.raises(ServingError, match=r"weights\.safetensors of the artifact is damaged"),
        serve_locally(settings, ready_s=300),
    ):
        raise AssertionError
    assert serve.status().applications == {}
    check_port("127.0.0.1", port)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl on PATH")
def test_https_with_keys(tmp_path: Path, cluster: None) -> None:  # noqa: ARG001
    store, specs = open_store(tmp_path)
    certificate, key, file = (tmp_path / name for name in ("certificate.pem", "key.pem", "keys"))
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *names, *files],
        check=True,
        capture_output=True,
    )
    token, port = keys.add(file, "ann", "data"), free_port()
    serving = ServingSettings(
        port=port,
        tls=TlsSettings(certificate=str(certificate), key=str(key)),
        access=AccessSettings(keys=str(file)),
    )
    settings = AppSettings(store=str(store.root), specs=specs[-1:], serving=serving)
    with serve_locally(settings, ready_s=300) as url:
        assert url == f"https://127.0.0.1:{port}"
        trusted = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=url, verify=trusted) as client:
            assert client.get("/v2").status_code == 401
            reply = client.get("/v2", headers={"X-API-Key": token})
            assert reply.json()["name"] == "orchestrator"
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"http://127.0.0.1:{port}/v2")


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
    assert facts["parameters"]["members_used"] == ",".join(used)
    if expected.probs is None:
        np.testing.assert_allclose(result.as_numpy("values"), expected.outputs, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_allclose(result.as_numpy("probabilities"), expected.probs, atol=1e-5)
        np.testing.assert_array_equal(result.as_numpy("label"), expected.probs.argmax(axis=1))


@pytest.mark.parametrize("name", ["mix", "table"])
def test_grpc_answers_are_the_in_process_ones(running: Running, name: str) -> None:
    spec = running.specs[name]
    rows = rows_of(spec)[:5]
    tensor = triton_grpc.InferInput("input", list(rows.shape), describe(spec).input.datatype)
    tensor.set_data_from_numpy(rows)
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{running.grpc_port}") as client:
        assert client.is_server_ready()
        result = client.infer(name, [tensor])
    expected = in_process(running.store, spec, rows)
    output, values = (
        ("values", expected.outputs) if expected.probs is None else ("probabilities", expected.probs)
    )
    np.testing.assert_allclose(result.as_numpy(output), values, rtol=1e-5, atol=1e-5)


def test_predict_answers_an_image_file(running: Running) -> None:
    rows = rows_of(running.specs["mix"])[:1]
    status, found = post(running.port, "/predict?model=mix", png(rows[0]), **{"Content-Type": "image/png"})
    assert status == 200
    probs = in_process(running.store, running.specs["mix"], rows).probs
    assert probs is not None
    np.testing.assert_allclose(found["predictions"][0]["probabilities"], probs[0], atol=1e-5)
    assert found["predictions"][0]["class"] == str(probs[0].argmax())


def test_the_cascade_really_exits_early(running: Running) -> None:
    spec = running.specs["cascade"]
    stages = in_process(running.store, spec, rows_of(spec)).stages
    assert 0 < (stages == 0).sum() < len(stages)


def test_a_cascade_of_deployments_tells_its_stages(running: Running) -> None:
    spec = running.specs["cascade"]
    rows = rows_of(spec)[:8]
    reply = httpx.post(
        f"http://127.0.0.1:{running.port}/predict?model=cascade",
        content=rows.tobytes(),
        headers={"Accept": "text/event-stream", "Content-Type": "application/octet-stream"},
        timeout=30,
    )
    assert reply.headers["content-type"] == "text/event-stream"
    names, found = [], []
    for event in reply.text.strip().split("\n\n"):
        name, data = event.split("\n")
        names.append(name.removeprefix("event: "))
        found.append(json.loads(data.removeprefix("data: ")))
    assert names == ["stage", "answer"]
    expected = in_process(running.store, spec, rows).probs
    said = [row["probabilities"] for row in found[-1]["predictions"]]
    assert expected is not None
    np.testing.assert_allclose(said, expected, atol=1e-5)


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


def test_figures_of_all_processes_and_the_page_are_served(running: Running) -> None:
    spec = running.specs["cascade"]
    rows = rows_of(spec)
    tensor = InferInput("input", list(rows.shape), "UINT8")
    tensor.set_data_from_numpy(rows)
    running.client.infer("cascade", [tensor])
    time.sleep(site.FRESH_S)
    url = f"http://127.0.0.1:{running.port}"
    told = httpx.get(f"{url}/metrics")
    samples = [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(told.text)
        for sample in family.samples
    ]

    def total(name: str, **labels: str) -> float:
        return sum(value for found, had, value in samples if found == name and labels.items() <= had.items())

    assert total("orchestrator_requests_total", model="cascade", status="200") >= 1
    assert total("orchestrator_member_seconds_count", model="cascade", member="mlp0") >= 1
    assert total("orchestrator_exit_rows_total", model="cascade") >= len(rows)
    assert total("orchestrator_batch_rows_count", member="mlp0") >= 1
    # The ingress, the ensembles and the distinct members: each series under the process that counted it.
    replicas = {labels["replica"].split("#")[0] for _, labels, _ in samples}
    assert {"ingress", "sequential-cascade"} < replicas
    assert any(name.startswith("member-mlp0-") for name in replicas)

    status = httpx.get(f"{url}/status").json()
    assert [model["name"] for model in status["models"]] == [spec.name for spec in running.settings.specs]
    assert not any(model["problem"] for model in status["models"])
    (found,) = (model for model in status["models"] if model["name"] == "cascade")
    assert sum(found["exits"].values()) >= len(rows)

    page = httpx.get(url, headers={"x-request-id": "mine"})
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers.get_list("x-request-id") == ["mine"]
