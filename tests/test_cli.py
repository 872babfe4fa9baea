"""The command line: what it prints where, its exit codes, and that users see no traceback."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator import __version__
from orchestrator.config.load import load_run
from orchestrator.errors import ClusterError
from orchestrator.pipeline import releasing
from orchestrator.pipeline import run as pipeline
from orchestrator.store.store import Store
from tests.data import toy
from tests.pipeline.command import command, process

VERBS = (
    "run",
    "init",
    "import",
    "train",
    "search",
    "ensemble",
    "evaluate",
    "compress",
    "sensitivity",
    "reproduce",
    "serve",
    "submit",
    "models",
    "report",
    "schema",
    "doctor",
)


def test_help_names_every_verb() -> None:
    found = command("--help")
    assert found.code == 0
    assert all(f" {verb} " in found.out for verb in VERBS)
    for verb in VERBS:
        help_ = command(verb, "-h")
        assert help_.code == 0
        assert "--json" in help_.out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, orchestrator.cli as cli\n"
        "try: cli.app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'ray', 'torch', 'numpy', 'pyarrow', 'pydantic', 'yaml'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


def test_version() -> None:
    assert command("--version").out.strip() == __version__


@pytest.mark.parametrize(
    "arguments", [["nosuch"], ["run"], ["run", "digits", "--wrong"], ["serve", "x", "--port", "y"]]
)
def test_usage_errors(arguments: list[str]) -> None:
    found = command(*arguments)
    assert found.code == 2
    assert "Traceback" not in found.err
    assert found.out == ""


def test_schema_is_json() -> None:
    assert command("schema").document["properties"]["models"]
    assert command("schema", "--json").document == command("schema").document


def test_init_writes_a_run_file_that_loads(tmp_path: Path) -> None:
    data, out = toy.image_file(tmp_path / "train.parquet"), tmp_path / "mine.yaml"
    said = command("init", "--data", data, "--out", out, "--name", "mine")
    assert said.code == 0
    assert f"orchestrator run {out}" in said.out
    assert load_run(out).name == "mine"
    before = out.read_bytes()
    assert "the file exists already" in command("init", "--data", data, "--out", out).sentence(2)
    assert out.read_bytes() == before
    assert command("init", "--data", data, "--out", out, "--force", "--json").document == {
        "written": str(out)
    }


def test_init_of_what_is_not_there(tmp_path: Path) -> None:
    assert "none.parquet" in command(
        "init", "--data", tmp_path / "none.parquet", "--out", tmp_path / "a"
    ).sentence(2)
    data = toy.image_file(tmp_path / "train.parquet")
    assert "the folder of the run file does not exist" in command(
        "init", "--data", data, "--out", tmp_path / "none" / "run.yaml"
    ).sentence(2)


def test_a_missing_run_file_in_a_process_of_its_own(tmp_path: Path) -> None:
    found = process("run", tmp_path / "none.yaml", "--json")
    text = found.sentence(2)
    assert "cannot read the run file" in text
    assert found.document == {"error": text.removeprefix("error: "), "kind": "ConfigError"}


def test_overrides_reach_the_run_file() -> None:
    found = command("train", "digits", "--set", "models.teacher.training.epoch=1")
    assert "models.teacher.training.epoch. did you mean 'epochs'" in found.sentence(2)
    assert "--data does not apply" in command("run", "digits", "--data", "/tmp").sentence(2)


@pytest.mark.parametrize(
    ("verb", "until"),
    [
        ("run", "report"),
        ("train", "train"),
        ("search", "search"),
        ("ensemble", "ensemble"),
        ("evaluate", "evaluate"),
    ],
)
def test_stages_print_one_document(monkeypatch: pytest.MonkeyPatch, verb: str, until: str) -> None:
    asked: dict[str, Any] = {}

    def execute(config: str, **options: Any) -> dict[str, Any]:
        asked.update(options, config=config)
        return {"run": "x"}

    monkeypatch.setattr(pipeline, "execute_file", execute)
    found = command(
        verb, "a.yaml", "--json", "--fresh", "--store", "s", "--set", "a=1", "--set", "b=2", "--data", "d"
    )
    assert found.document == {"run": "x"}
    assert asked == {
        "config": "a.yaml",
        "until": until,
        "store": "s",
        "overrides": ["a=1", "b=2"],
        "data": "d",
        "fresh": True,
        "quiet": True,
    }


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ClusterError("no Ray", "here", "start it"), 1, "error: no Ray: here. start it."),
        (OSError(errno.ENOSPC, "No space left on device", "/x/summary.tmp"), 1, "no space is left"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "no space is left"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/runs"), 1, "Permission denied: /x/runs"),
    ],
)
def test_failures_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, said: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(pipeline, "execute_file", fail)
    found = command("run", "digits", "--json")
    assert said in found.sentence(code)
    assert found.document["error"] == found.sentence(code).removeprefix("error: ")


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "execute_file", stop)
    found = command("run", "digits")
    assert (found.code, found.out) == (130, "")
    assert "run the same command again" in found.err


@pytest.mark.parametrize("error", [ValueError("a bug"), ConnectionResetError(errno.ECONNRESET, "reset")])
def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(pipeline, "execute_file", fail)
    with pytest.raises(type(error)):
        command("run", "digits")


def test_what_is_not_in_the_store(tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert "there is no store" in command("models", "--store", store).sentence(2)
    assert "there is no store" in command("serve", "digits", "--store", store).sentence(2)
    assert "no finished run" in command("report", "digits", "--store", store).sentence(2)
    assert not store.exists()
    Store(store)
    assert command("models", "--store", store, "--json").document == []
    Store(tmp_path / "a")
    assert command("models", "gc", "--store", tmp_path / "a").code == 0
    assert "no ref in the store begins so: digts" in command("models", "digts", "--store", store).sentence(2)
    assert "no ensemble of that name" in command("serve", "digits", "--store", store).sentence(2)


def test_submit_without_a_cluster(tmp_path: Path) -> None:
    assert "must be an absolute path or a URI: here" in command(
        "submit", "digits", "--store", "here"
    ).sentence(2)
    found = command("submit", "digits", "--address", "http://127.0.0.1:9", "--store", tmp_path)
    assert "no Ray dashboard answers: http://127.0.0.1:9" in found.sentence(1)


def test_status_shows_large_counts_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"name": "mix", "version": "1", "kind": "mix", "ready": True, "releases": None, "members": ["a"]}
    counts = {"weight_epoch": 1234567.0, "answers": 1234567.0, "degraded": 1000001.0}
    monkeypatch.setattr(releasing, "status", lambda _: {"models": [{**model, **counts}]})
    said = command("status").out
    assert "weight epoch 1234567, answers 1,234,567, degraded 1,000,001" in said
