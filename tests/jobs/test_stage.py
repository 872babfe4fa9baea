"""The job scripts: arguments, one sentence for errors, and stopping in order."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import stage
from orchestrator.cluster import JOB_VARIABLE
from orchestrator.errors import DataError
from tests.pipeline import toys

ROOT = Path(__file__).parents[2]
SCRIPTS = {
    "train": "train",
    "search": "search",
    "ensemble": "ensemble",
    "evaluate": "evaluate",
    "pipeline": "report",
}


@pytest.fixture(autouse=True)
def _signals() -> Any:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The environment of a submitted job's driver."""
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    monkeypatch.delenv("ORCHESTRATOR_STORE", raising=False)
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def run(*arguments: str | Path, until: str = "train") -> int:
    """Exit code of a stage with these arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        try:
            stage.main(until, "What it does.")
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 1
    return 0


def fail_with(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    patch.setattr(stage, "execute_file", fail)


@pytest.mark.parametrize(("script", "until"), SCRIPTS.items())
def test_each_script_names_its_stage(monkeypatch: pytest.MonkeyPatch, script: str, until: str) -> None:
    text = (ROOT / "jobs" / f"{script}.py").read_text()
    asked: list[str] = []
    monkeypatch.setattr(stage, "main", lambda until, _: asked.append(until))
    monkeypatch.setattr(sys, "path", list(sys.path))
    exec(
        compile(text, f"{script}.py", "exec"),
        {"__name__": "__main__", "__file__": str(ROOT / "jobs" / "x.py")},
    )
    assert asked == [until]


@pytest.mark.slow
def test_a_script_runs_from_anywhere(tmp_path: Path) -> None:
    line = [sys.executable, str(ROOT / "jobs" / "train.py"), "--config", "none.yaml"]
    found = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 2
    assert found.stderr.startswith("error: cannot read the run file: none.yaml")
    assert "Traceback" not in found.stderr


def test_arguments_reach_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(stage, "execute_file", lambda config, **more: asked.update(more, config=config))
    assert run("--config", "a.yaml", "--store", "/s", "--data", "/d", "--set", "a=1", "--set", "b=2") == 0
    assert asked == {
        "config": "a.yaml",
        "until": "train",
        "store": "/s",
        "overrides": ["a=1", "b=2"],
        "data": "/d",
        "fresh": False,
    }


def test_a_search_over_trainings_is_a_job_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(stage, "tune_file", lambda config, **_: asked.append(config))
    assert run("--config", "a.yaml", "--stage", "training", until="search") == 0
    assert asked == ["a.yaml"]
    assert run("--config", "a.yaml", "--stage", "training") == 2, "of `search` alone"


@pytest.mark.parametrize("arguments", [[], ["--config"], ["--config", "a.yaml", "--wrong"]])
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert "usage: train.py" in capsys.readouterr().err


def test_help_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "What it does." in capsys.readouterr().out


def test_a_wrong_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = toys.write(tmp_path / "run.yaml")
    assert run("--config", file, "--set", "models.small.training.epoch=1") == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [f"error: unknown key in {file}: models.small.training.epoch. did you mean 'epochs'."]


def test_a_relative_store_is_refused_in_a_job(
    job: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = toys.write(tmp_path / "run.yaml")
    expected = "error: inside a Ray job the store must be an absolute path or a URI: runs/store. pass --store"
    assert run("--config", file, "--store", "runs/store") == 2
    assert capsys.readouterr().err.startswith(expected)
    job.setenv("ORCHESTRATOR_STORE", "runs/store")
    assert run("--config", file) == 2
    said = capsys.readouterr().err
    assert said.startswith(expected)
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_relative_data_is_refused_in_a_job(
    job: pytest.MonkeyPatch,  # noqa: ARG001
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = toys.write(tmp_path / "run.yaml", data={"kind": "parquet", "root": "rows", "train": "a.parquet"})
    assert run("--config", file, "--store", tmp_path / "store") == 2
    assert "inside a Ray job data.root must be an absolute path: rows. pass --data" in capsys.readouterr().err
    assert run("--config", file, "--store", tmp_path / "store", "--data", tmp_path) == 2
    assert "data file not found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("no rows", "a.parquet"), 2, "error: no rows: a.parquet"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: no space is left on the disk"),
    ],
)
def test_failures_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    said: str,
) -> None:
    fail_with(monkeypatch, error)
    assert run("--config", "a.yaml") == code
    found = capsys.readouterr().err
    assert said in found
    assert len(found.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_job_leaves_its_blocks_in_order(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    told: list[str] = []

    def work(*_: Any, **__: Any) -> None:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            told.append(capfd.readouterr().err)

    monkeypatch.setattr(stage, "execute_file", work)
    assert run("--config", "a.yaml") == 130
    assert told == ["stopped; what was finished is in the store: submit the same run again to continue\n"]
