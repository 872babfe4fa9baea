"""A run told to a real MLflow server on loopback; the server is of an environment of its own.

`ORCHESTRATOR_MLFLOW` names its program, if it is not `.venv-mlflow/bin/mlflow` (`make mlflow`).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.config.tracking import MlflowTracking
from orchestrator.errors import ClusterError, ConfigError
from orchestrator.tracking import mlflow as tracked
from orchestrator.tracking.mlflow import Mlflow
from tests.architecture.modules import ROOT
from tests.pipeline import toys
from tests.pipeline.command import command
from tests.pipeline.tiny import free_port
from tests.tracking.test_tensorboard import epoch, result

PARAMS = {"seed": 3, "models": {"teacher": {"training": {"lr": 0.1, "augment": {}}}}, "list": [1, 2]}


def test_settings_become_parameters() -> None:
    assert tracked._flat(PARAMS) == {
        "seed": "3",
        "models.teacher.training.lr": "0.1",
        "models.teacher.training.augment": "{}",
        "list": "[1, 2]",
    }
    assert tracked._flat({"a[0]": "x" * 900}) == {"a_0_": "x" * 500}


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"ensemble-orchestrator\[mlflow\]"):
        Mlflow(MlflowTracking(uri="http://127.0.0.1:1"), "toy", {})


def test_a_server_that_refuses_the_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*_: object, **__: object) -> str:
        raise RuntimeError("The experiment 1 must be in the 'active' state. Current state is deleted.")

    monkeypatch.setattr(tracked, "_Api", lambda _: SimpleNamespace(begin=begin))
    with pytest.raises(ClusterError, match=r"experiment 'mine'.*state is deleted.*restore it"):
        Mlflow(MlflowTracking(uri="http://127.0.0.1:1", experiment="mine"), "toy", {})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an MLflow server that keeps everything in a temporary folder."""
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    program = os.environ.get("ORCHESTRATOR_MLFLOW") or str(ROOT / ".venv-mlflow" / "bin" / "mlflow")
    if not Path(program).exists():
        pytest.skip(f"no MLflow server at {program}: make mlflow")
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    options = {
        "--backend-store-uri": f"sqlite:///{folder}/runs.db",
        "--artifacts-destination": str(folder / "artifacts"),
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
    }
    line = [program, "server", *(part for option in options.items() for part in option)]
    with (folder / "server.log").open("w") as out:
        process = subprocess.Popen(line, stdout=out, stderr=out, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(process, address, folder / "server.log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _wait(process: subprocess.Popen[bytes], address: str, out: Path) -> None:
    for _ in range(120):
        assert process.poll() is None, out.read_text()
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    pytest.fail(out.read_text())


def client(server: str) -> Any:
    return pytest.importorskip("mlflow").MlflowClient(tracking_uri=server)


def runs(server: str, experiment: str) -> dict[str, Any]:
    """By name."""
    api = client(server)
    found = api.search_runs([api.get_experiment_by_name(experiment).experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


@pytest.mark.slow
def test_trials_and_a_restart(server: str, tmp_path: Path) -> None:
    settings = MlflowTracking(uri=server, experiment="trials")
    page = tmp_path / "report.html"
    page.write_text("page")
    story = [epoch(1), epoch(2, 0.25), result(0, 0.3), result(1, 0.4, "other"), result(-2, 0.4, "bf16")]
    for events in (story[:3], story):  # the second time as after a death
        board = Mlflow(settings, "toy", PARAMS)
        for event in events:
            board.show(event)
        board.close()
        board.finish("FINISHED", [(page, ""), (tmp_path / "none.json", ""), (page, "tuning")])
    found = runs(server, "trials")
    assert set(found) == {"toy", "lr=0.1 model=cnn", "other", "bf16"}
    whole, other = found["toy"], found["other"]
    assert whole.data.params == tracked._flat(PARAMS)
    assert other.data.params == {"lr": "0.1", "model": "cnn", "number": "2"}
    assert other.data.metrics == {"accuracy": 0.9, "drop": 0.01, "latency_ms": 2.0, "bytes": 1000.0}
    assert other.data.tags["mlflow.parentRunId"] == whole.info.run_id
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    api = client(server)
    history = api.get_metric_history(whole.info.run_id, "search/hypervolume")
    assert [(point.step, point.value) for point in history] == [(1, 0.3), (2, 0.4)]
    losses = api.get_metric_history(whole.info.run_id, "teacher/loss")
    assert [point.value for point in losses] == [0.5, 0.25]
    assert {file.path for file in api.list_artifacts(whole.info.run_id)} == {"report.html", "tuning"}
    # Other settings are another run.
    Mlflow(settings, "toy 2", {"seed": 4}).finish("KILLED")
    assert runs(server, "trials")["toy 2"].info.status == "KILLED"


@pytest.mark.slow
def test_the_command_tells_the_server(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fails at once needs no Ray; it is on the server with its settings."""
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    section = {"kind": "mlflow", "uri": server, "experiment": "command"}
    file = toys.write(tmp_path / "run.yaml", tracking=section)
    found = command("search", "--stage", "training", file, "--store", tmp_path / "store", "--json")
    assert "the run file has no training_search" in found.sentence(2)
    assert found.document["kind"] == "ConfigError", "standard output is one document"
    (run,) = runs(server, "command").values()
    assert run.info.status == "FAILED"
    assert run.data.params["models.small.model.factory"] == "mlp"
    assert not any(name.startswith("tracking") for name in run.data.params)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    section = {"kind": "mlflow", "uri": f"http://127.0.0.1:{port}"}
    file = toys.write(tmp_path / "run.yaml", tracking=section)
    said = command("train", file, "--store", tmp_path / "store").sentence(1)
    assert f"the MLflow server does not answer as it should: http://127.0.0.1:{port}" in said


@pytest.mark.slow
def test_a_server_that_is_lost_costs_no_run(server: str, caplog: pytest.LogCaptureFixture) -> None:
    board = Mlflow(MlflowTracking(uri=server, experiment="lost"), "toy", {})
    board._api._client.log_batch = None
    board.show(epoch(1))
    board.show(result(0, 0.3))
    board.finish("FINISHED")
    assert [record.message[:28] for record in caplog.records] == ["no more figures for MLflow: "]
