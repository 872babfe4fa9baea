"""Some rows of a real file, when there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.config.data import ParquetData
from orchestrator.data.load import load

FOLDER = os.environ.get("ORCHESTRATOR_TEST_DATA", "")


@pytest.mark.skipif(
    not (Path(FOLDER) / "cifar10-train.parquet").is_file() or not FOLDER,
    reason="ORCHESTRATOR_TEST_DATA names no folder with cifar10-train.parquet and cifar10-test.parquet",
)
def test_cifar10(tmp_path: Path) -> None:
    settings = ParquetData(root=FOLDER, train="cifar10-train.parquet", test="cifar10-test.parquet", limit=400)
    dataset = load(settings, seed=0, cache=tmp_path)
    assert dataset.signature.input_shape == (3, 32, 32)
    assert dataset.signature.outputs == 10
    assert dataset.facts["rows"] == {
        "train": 300,
        "validation": 40,
        "calibration": 20,
        "contract": 40,
        "test": 400,
    }
    assert min(dataset.part("test").ids) == 50_000
