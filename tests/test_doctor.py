"""The doctor: a fix for each finding, and nothing that needs Ray or a network."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import doctor, upload
from orchestrator.doctor import Finding, examine, render
from tests.pipeline.command import command

HAPROXY = "haproxy -W -f /tmp/haproxy-serve/haproxy.cfg"
TOPICS = {
    "python",
    "packages",
    "compiler",
    "cores",
    "memory",
    "bfloat16",
    "int8",
    "shared memory",
    "disk",
    "ports",
    "ray auth",
    "ray tls",
    "cluster",
    "haproxy",
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No port is taken, no Ray is named, no process is seen; home is empty."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "ORCHESTRATOR_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "_listening", lambda _: False)
    processes(monkeypatch, {})


def processes(monkeypatch: pytest.MonkeyPatch, names: dict[str, str]) -> None:
    """What /proc shows."""
    listed = lambda _: [*names, "meminfo", "self"]  # noqa: E731
    monkeypatch.setattr(doctor, "os", SimpleNamespace(**{**vars(os), "listdir": listed}))
    monkeypatch.setattr(doctor, "_command", names.__getitem__)


def of(topic: str) -> list[Finding]:
    return [finding for finding in examine() if finding.topic == topic]


def one(topic: str) -> Finding:
    (finding,) = of(topic)
    return finding


def test_every_topic_is_looked_at_and_every_problem_has_a_fix() -> None:
    found = examine()
    assert {finding.topic for finding in found} == TOPICS
    for finding in found:
        assert finding.text
        assert finding.fix or finding.level == "ok", finding
    assert one("cluster").level == "ok"


def test_a_sick_machine_has_a_fix_for_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    processes(monkeypatch, {"12": HAPROXY})
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(version_info=(3, 9, 1), executable=sys.executable))
    monkeypatch.setattr(doctor, "_listening", lambda _: True)
    monkeypatch.setattr(subprocess, "run", _refuse)
    monkeypatch.setenv("RAY_USE_TLS", "1")
    ill = [finding for finding in examine() if finding.level != "ok"]
    assert {finding.topic for finding in ill} >= TOPICS - {"cores", "memory", "bfloat16", "int8"}
    assert all(finding.fix for finding in ill)
    assert not any("secret" in finding.text + finding.fix for finding in ill)


def _refuse(*_: Any, **__: Any) -> Any:
    raise subprocess.TimeoutExpired("python", 30)


def test_an_orphaned_haproxy_is_told_by_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    processes(
        monkeypatch, {"1": "init", "77": HAPROXY, "78": HAPROXY, "5": "haproxy -f /etc/haproxy/haproxy.cfg"}
    )
    finding = one("haproxy")
    assert (finding.level, finding.fix) == ("error", "kill 77 78")
    assert "orphaned: process 77, 78" in finding.text


def test_a_haproxy_beside_its_ray_is_fine_but_for_its_open_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    processes(monkeypatch, {"77": HAPROXY, "70": "/ray/raylet --port=1"})
    assert of("haproxy") == []
    monkeypatch.setattr(doctor, "_listening", {8404, 9101}.__contains__)
    finding = one("haproxy")
    assert finding.level == "warning"
    assert "8404 (HAProxy statistics), 9101 (HAProxy metrics)" in finding.text


def test_processes_that_end_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert doctor._command("0") == ""
    assert doctor._command("self")


def test_ports_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_listening", {8000}.__contains__)
    finding = one("ports")
    assert (finding.level, finding.text) == ("warning", "in use: 8000 (serving)")
    assert "--port" in finding.fix


def test_a_port_is_in_use_while_someone_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert doctor._listening(port)
    assert not doctor._listening(port)


@pytest.mark.parametrize(("mode", "level"), [("disabled", "warning"), ("token", "ok"), (None, "ok")])
def test_auth_mode(monkeypatch: pytest.MonkeyPatch, mode: str | None, level: str) -> None:
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    assert one("ray auth").level == level


def test_a_token_file_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o640)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    exists, readable = of("ray auth")
    assert "will ask every node" in exists.text
    assert readable.fix == f"chmod 600 {token}"


def test_a_running_cluster_is_asked_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = SimpleNamespace(stdout='log line\n{"CPU": 8.0}\n')
    monkeypatch.setattr(doctor, "_listening", {6379}.__contains__)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    assert one("cluster") == Finding("cluster", "ok", '{"CPU": 8.0}')
    monkeypatch.setattr(subprocess, "run", _refuse)
    assert "no answer from auto (TimeoutExpired)" in one("cluster").text
    assert (one("cluster").level, one("cluster").fix) == ("error", "see 'ray status'")


def test_a_store_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("orchestrator.doctor.os.access", lambda *_: False)
    (finding,) = [found for found in examine(str(tmp_path / "a" / "b")) if found.topic == "store"]
    assert (finding.level, finding.text) == ("error", f"{tmp_path} is not writable")
    (remote,) = [found for found in examine("s3://bucket/store") if found.topic == "store"]
    assert remote.level == "ok"


def test_a_store_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for place, words in ((str(tmp_path), "not a store and not empty"), ("ftp://host/x", "ftp://")):
        (finding,) = [found for found in examine(place) if found.topic == "store"]
        assert finding.level == "error"
        assert words in finding.text
        assert finding.fix


def test_little_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30 - 1))
    assert "--shm-size" in one("shared memory").fix
    assert one("disk").level == "warning"


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    well = command("doctor", "--json")
    assert well.code == 0
    assert {finding["topic"] for finding in well.document} == TOPICS
    processes(monkeypatch, {"77": HAPROXY})
    assert command("doctor", "--json").code == 1
    render([Finding("haproxy", "error", "orphaned", "kill 77")])
    assert "kill 77" in capsys.readouterr().out
    assert json.dumps(well.document)


def test_says_what_number_types_are_worth_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_bf16_kernels", lambda: False)
    monkeypatch.setattr(doctor, "reduce_range", lambda: True)
    assert "precision: fp32" in one("bfloat16").fix
    assert "reduce_range" in one("int8").fix
    monkeypatch.setattr(doctor, "has_bf16_kernels", lambda: True)
    monkeypatch.setattr(doctor, "reduce_range", lambda: False)
    assert (one("bfloat16").level, one("int8").level) == ("ok", "ok")


def test_tls_of_ray_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    assert "in the clear" in one("ray tls").text
    monkeypatch.setenv("RAY_USE_TLS", "1")
    assert one("ray tls").level == "error"
    for name in ("SERVER_CERT", "SERVER_KEY", "CA_CERT"):
        (tmp_path / name).write_text("pem")
        monkeypatch.setenv(f"RAY_TLS_{name}", str(tmp_path / name))
    assert one("ray tls") == Finding("ray tls", "ok", "on")


def test_where_the_token_comes_from_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert "token from nowhere" in one("ray auth").text
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert one("ray auth").text == f"RAY_AUTH_MODE=token, token from {tmp_path / 'token'}"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert one("ray auth").text == "RAY_AUTH_MODE=token, token from RAY_AUTH_TOKEN"


def test_what_a_job_would_send_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert of("upload") == []
    (tmp_path / ".rayignore").write_text("runs/\n")
    assert one("upload").level == "ok"
    monkeypatch.setattr(upload, "LIMIT_BYTES", 3)
    monkeypatch.setattr(doctor, "LIMIT_BYTES", 3)
    found = one("upload")
    assert (found.level, ".rayignore 0.0 MiB" in found.fix) == ("warning", True)
