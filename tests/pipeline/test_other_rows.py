"""Rows of other sources that models of a run see: transfer sets, and a table from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.config.load import validate
from orchestrator.config.run import RunConfig
from orchestrator.data.dataset import Dataset
from orchestrator.data.load import load, open_cached
from orchestrator.errors import DataError
from orchestrator.pipeline.context import Run, open_run
from orchestrator.pipeline.elsewhere import _named
from orchestrator.pipeline.training import job_of
from orchestrator.progress import Progress
from tests.data import toy

ROWS = np.arange(60.0)
SMALL: dict[str, Any] = {"a": np.sin(ROWS), "b": ROWS, "c": -100 - ROWS}
MODEL = {"factory": "mlp", "kwargs": {"widths": [4]}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))


def run_of(folder: Path, transfer: dict[str, Any], **data: Any) -> Run:
    """Of a table with columns a, b, c and a student that learns from another one."""
    own = {"kind": "parquet", "root": str(folder), **data}
    toy.write(folder / "train.parquet", **SMALL, label=toy.labels() if "task" not in data else ROWS)
    other = {**own, "train": "other.parquet", **transfer}
    student = {"epochs": 1, "loss": {"kind": "distillation"}, "transfer": other}
    values = {
        "name": "toy",
        "data": {**own, "train": "train.parquet"},
        "models": {
            "big": {"model": MODEL, "training": {"epochs": 1}},
            "small": {"model": MODEL, "teacher": "big", "training": student},
        },
        "elsewhere": other if "task" not in data else None,
    }
    config = validate(RunConfig, values, "toy.yaml")
    return open_run(config, store=str(folder / "store"), progress=Progress(), cluster=lambda: None)


def transferred(run: Run) -> Dataset:
    folder = job_of(run, "small", run.config.models["small"], {}).transfer_folder
    assert folder is not None
    return open_cached(Path(folder))


def test_columns_of_a_table_are_taken_by_name(tmp_path: Path) -> None:
    toy.write(tmp_path / "other.parquet", **dict(reversed(SMALL.items())), extra=ROWS, label=toy.labels())
    run = run_of(tmp_path, {})
    found = transferred(run)
    assert found.signature.mean == run.dataset.signature.mean
    np.testing.assert_array_equal(found.part("train").inputs, run.dataset.part("train").inputs)
    assert run.config.elsewhere is not None
    rows = _named(run, run.config.elsewhere).part("test").inputs
    assert (rows[:, 2] < -99).all()

    ordered = run_of(tmp_path, {"features": ["c", "b", "a"]})
    assert transferred(ordered).digest == found.digest
    toy.write(tmp_path / "other.parquet", x=ROWS, y=ROWS, z=ROWS, label=toy.labels())
    with pytest.raises(DataError, match=r"no column of other.parquet has this name: a"):
        transferred(run)
    renamed = run_of(tmp_path, {"features": ["x", "y", "z"]})
    assert transferred(renamed).facts["features"] == ["x", "y", "z"]


@pytest.mark.parametrize("label", [{}, {"label": [0] * 60}, {"label": [0] * 59 + [1]}, {"label": ["?"] * 60}])
@pytest.mark.parametrize("task", [{}, {"task": "regression"}], ids=["classes", "values"])
def test_rows_without_labels_of_use_are_taken_too(
    tmp_path: Path, label: dict[str, Any], task: dict[str, Any]
) -> None:
    toy.write(tmp_path / "other.parquet", **SMALL, **label)
    found = transferred(run_of(tmp_path, {}, **task))
    assert {name: len(part) for name, part in found.parts.items()} == {
        "train": 36,
        "validation": 5,
        "calibration": 2,
        "contract": 5,
        "test": 12,
    }
    (tmp_path / "other.parquet").unlink()
    with pytest.raises(DataError, match="data file not found"):
        transferred(run_of(tmp_path, {}, **task))


def test_labels_of_use_still_decide_the_parts(tmp_path: Path) -> None:
    toy.write(tmp_path / "other.parquet", **SMALL, label=toy.labels())
    run = run_of(tmp_path, {})
    plain = load(toy.settings(tmp_path / "other.parquet"), seed=0, cache=tmp_path / "cache")
    assert transferred(run).digest == plain.digest
