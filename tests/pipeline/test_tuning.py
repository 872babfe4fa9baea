"""The search over trainings on a Ray of its own: what it prints, names and writes, and run again."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import yaml

from orchestrator.config.load import load_run, parse_yaml, read_yaml, validate
from orchestrator.config.run import RunConfig
from orchestrator.pipeline.tuning import tuned_run
from orchestrator.store.store import Store
from orchestrator.tracking.tensorboard import FILE
from tests.pipeline import toys
from tests.pipeline.command import command

MODELS = {
    "small": {
        "model": {"factory": "mlp", "kwargs": {"widths": [16]}},
        "training": {"epochs": 1, "batch_size": 64, "lr": 0.01},
    },
    "other": {"model": {"factory": "cnn"}, "training": {"epochs": 1}},
}
SECTION = {
    "model": "small",
    "trials": 4,
    "batch": 2,
    "driver": "pool",
    "latency": {"blocks": 5, "block_ms": 1},
    "space": {
        "model": {"kwargs": {"widths": {"choice": [[16], [24]]}}},
        "training": {"epochs": {"choice": [2, 3]}, "lr": {"choice": [0.1]}},
    },
}


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_written_run_file_can_be_read(path: Path) -> None:
    values, name = read_yaml(path), path.name
    model = next(own for own, entry in values["models"].items() if not {"copies", "ref"} & set(entry))
    free = {"model": model, "space": {"training": {"epochs": {"choice": [2, 3]}}}}
    config = validate(RunConfig, {**values, "training_search": free}, name)
    written = parse_yaml(tuned_run(config, config.models[model].given()), name)
    found = validate(RunConfig, written, name)
    assert found.plain() == {**config.plain(), "name": found.name, "training_search": None}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=100 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": os.getcwd()}},
    )
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_search_over_trainings(tmp_path: Path) -> None:
    """One long test: each search on Ray costs seconds."""
    file = toys.write(tmp_path / "run.yaml", models=MODELS, training_search=SECTION)
    out = tmp_path / "tuned.yaml"
    line = ("search", "--stage", "training", file, "--store", tmp_path / "store")
    found = command(*line, "--json", "--out", out)
    assert found.code == 0, found.err
    told, store = found.document, Store(tmp_path / "store")
    assert (told["run"], told["model"], told["trials"]) == ("toy", "small", 4)
    assert "trial 4 of 4" in found.err
    best = told["best"]
    assert best["ref"] == "toy/small-best"
    assert best["digest"] == store.ref("toy/small-best") != store.ref("toy/small")
    assert best["metric"] > told["parent"]["metric"]
    assert best["latency_ms"] > 0
    assert told["front"][0]["latency_ms"] <= best["latency_ms"]
    assert "toy/other" not in store.refs("toy/"), "only the model that is searched is trained"

    # The report has the trials, in a folder of its own, and is written again with the run's.
    page = Path(told["report"])
    assert page == tmp_path / "toy" / "tuning" / "report.html"
    source = json.loads((page.parent / "report.json").read_text())
    (target,) = source["details"]["targets"].values()
    assert len(target["trials"]) == 4
    assert target["chosen"] == best["name"]
    assert "The best model:" in page.read_text()
    page.unlink()

    # TensorBoard has each training, each trial and the whole; told again, nothing is doubled.
    board = {file: file.read_bytes() for file in (tmp_path / "toy" / "tensorboard").rglob(FILE)}
    names = {file.parent.relative_to(tmp_path / "toy" / "tensorboard").as_posix() for file in board}
    assert names >= {"train/small", "tune", f"tune/{best['name']}"}
    assert len(names) == 6

    # Again: nothing is computed, and the snippet is what the document says.
    ray.shutdown()
    again = command(*line)
    assert again.code == 0, again.err
    assert yaml.safe_load(again.out) == {"models": {"small": told["entry"]}}
    assert f"# {told['reason']}" in again.out
    assert page.exists()
    assert {file: file.read_bytes() for file in board} == board

    # The written file is a run of its own, whose model is in the store already.
    run = load_run(out)
    assert (run.name, run.training_search, run.models["other"]) == (
        "toy-tuned",
        None,
        load_run(file).models["other"],
    )
    alone = ("--set", f"models={json.dumps({'small': told['entry']})}")
    trained = command("train", out, *alone, "--store", tmp_path / "store", "--json")
    assert trained.document["models"] == {"small": best["digest"]}
    assert not ray.is_initialized()

    # Other settings are another search.
    changed = command(*line, "--set", "training_search.space.training.lr.choice=[0.2]")
    assert "this run's search had other settings" in changed.sentence(2)
    assert "space.training.lr" in changed.err


def test_a_run_file_without_the_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    file = toys.write(tmp_path / "run.yaml")
    line = ("search", "--stage", "training", file, "--store", tmp_path / "store")
    assert "the run file has no training_search" in command(*line).sentence(2)
    nowhere = command(*line, "--out", tmp_path / "none" / "tuned.yaml")
    assert "the folder of the run file does not exist" in nowhere.sentence(2)
    other = command("search", file, "--out", tmp_path / "tuned.yaml")
    assert (other.code, other.out) == (2, "")
    assert "--stage training" in other.err
