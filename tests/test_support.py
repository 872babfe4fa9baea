"""The archive for helpers holds what they need, and none of the secrets that lie about."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from orchestrator import support
from tests.pipeline.command import command

SECRETS = {
    "environment": "env-S3cret-0001",
    "token file": "tok-S3cret-0002",
    "run file": "cfg-S3cret-0003",
    "log": "log-S3cret-0004",
    "summary": "sum-S3cret-0005",
    "claim": "clm-S3cret-0006",
    "settings of others": "yml-S3cret-0007",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with a run, logs, a run file, variables and a token file, with a secret in each."""
    run = tmp_path / "toy"
    (run / "training").mkdir(parents=True)
    (tmp_path / "store").mkdir()
    (run / "summary.json").write_text(json.dumps({"run": "toy", "api_key": SECRETS["summary"], "seconds": 7}))
    (run / "training" / "small.json").write_text(f'{{"uri": "http://me:{SECRETS["claim"]}@tracker"}}')
    (run / "report.html").write_text("large")
    (run / "study.json").write_text("{}")
    (tmp_path / "k8s").mkdir()
    (tmp_path / "k8s" / "values.yaml").write_text(f"pgpass: {SECRETS['settings of others']}")
    logs = tmp_path / "logs"
    (logs / "serve").mkdir(parents=True)
    (logs / "job-driver-toy-1.log").write_text(
        f"start\npassword={SECRETS['log']}\n{SECRETS['environment']}\n"
    )
    (logs / "serve" / "replica.log").write_text(f"header {SECRETS['token file']} end\n" * 20_000)
    (logs / "raylet.out").write_text("raylet is up\n")
    (logs / "worker-1.out").write_text("not taken")
    (tmp_path / "run.yaml").write_text(f"tracking: {{token: {SECRETS['run file']}}}\nname: toy\n")
    (tmp_path / "token").write_text(SECRETS["token file"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS["environment"])
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("RAY_ADDRESS", "none:1")
    monkeypatch.setattr(support, "examine", lambda _: [])
    return tmp_path


def collected(place: Path, *more: str) -> dict[str, str]:
    out = place / "support.tar.gz"
    given: list[str | Path] = ["--out", out, "--store", place / "store", "--ray-logs", place / "logs", *more]
    found = command("support-bundle", *given, "--json").document
    with tarfile.open(out) as archive:
        texts = {
            entry.name.removeprefix("support/"): archive.extractfile(entry).read().decode()  # type: ignore[union-attr]
            for entry in archive.getmembers()
        }
    assert list(texts) == found["entries"]
    return texts


def test_no_secret_is_in_it(place: Path) -> None:
    texts = collected(place, "--config", str(place / "run.yaml"))
    whole = "\n".join(texts.values())
    for where, secret in SECRETS.items():
        assert secret not in whole, where
    assert json.loads(texts["environment.json"])["AWS_SECRET_ACCESS_KEY"] == "[removed]"


def test_what_helps_is_in_it(place: Path) -> None:
    texts = collected(place, "--config", str(place / "run.yaml"))
    assert {
        "versions.json",
        "machine.json",
        "doctor.json",
        "environment.json",
        "config/run.yaml",
        "runs/toy/study.json",
        "runs/toy/summary.json",
        "runs/toy/training/small.json",
        "logs/job-driver-toy-1.log",
        "logs/raylet.out",
        "logs/serve/replica.log",
    } == set(texts)
    assert json.loads(texts["versions.json"])["packages"]["ray"].startswith("2.")
    assert json.loads(texts["runs/toy/summary.json"])["seconds"] == 7
    assert texts["logs/raylet.out"] == "raylet is up\n"
    assert 100_000 < len(texts["logs/serve/replica.log"]) <= support.LOG_BYTES


def test_an_unwritable_target_is_a_sentence(place: Path) -> None:
    said = command("support-bundle", "--out", place / "none" / "x.tar.gz", "--store", place / "store")
    assert "the archive cannot be written" in said.sentence(2)
    said = command("support-bundle", "--config", place / "none.yaml", "--store", place / "store")
    assert "the run file cannot be read" in said.sentence(2)
