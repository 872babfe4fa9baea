"""The search's benchmark runs with tiny settings, and counts as its page says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.search_hypervolume import ARMS, _candidates, _ratios
from benchmarks.search_tune import Variant

FOLDER = os.environ.get("ORCHESTRATOR_TEST_DATA", "")


def variant(metric: float, latency_ms: float) -> Variant:
    return Variant(1.0, "store", "digest", "eager", metric, latency_ms, {})


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.search", "--json", str(folder / "out.json"), *arguments]
    environment = {**os.environ, "ORCHESTRATOR_CACHE": str(folder / "cache")}
    subprocess.run(command, check=True, timeout=500, env=environment)
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return found


def test_what_may_be_on_the_front_is_measured_again() -> None:
    near, best, beaten, cheap = variant(0.8, 1.2), variant(0.8, 1.0), variant(0.7, 1.6), variant(0.6, 0.5)
    assert _candidates([near, best, beaten, cheap]) == [near, best, cheap]


def test_ratios_are_medians_over_seeds_and_need_every_arm() -> None:
    rows = [
        {"arm": arm, "seed": seed, "hypervolume": volume * (1 + seed), "finished": finished}
        for arm, volume, finished in zip(ARMS, (0.3, 0.2, 0.25), (50, 10, 20), strict=True)
        for seed in (0, 1, 2)
    ]
    found = {name: ratio.value for name, ratio in _ratios(rows).items()}
    assert found == pytest.approx(
        {"hypervolume_vs_random": 1.5, "hypervolume_vs_tpe": 1.2, "trials_per_minute": 2.5}
    )
    assert _ratios(rows[:-1]) == {}


@pytest.mark.slow
def test_noise(tmp_path: Path) -> None:
    found = run(tmp_path, "--part", "noise", "--measurements", "2", "--busy-s", "0.2")
    rows = found["rows"][1:]  # the first one is of the part
    assert [len(row["medians_ms"]) for row in rows] == [2, 2, 2]
    worst = max(row["spread"] for row in rows)
    assert found["ratios"]["bench_noise"]["value"] == worst


@pytest.mark.slow
@pytest.mark.skipif(
    not (Path(FOLDER) / "cifar10-train.parquet").is_file() or not FOLDER,
    reason="ORCHESTRATOR_TEST_DATA names no folder with cifar10-train.parquet",
)
def test_hypervolume(tmp_path: Path) -> None:
    tiny = ("--rows", "400", "--parent-epochs", "1", "--minutes", "0.5", "--seeds", "1")
    found = run(tmp_path, "--part", "hypervolume", "--data", FOLDER, "--store", str(tmp_path / "s"), *tiny)
    rows = [row for row in found["rows"] if "arm" in row]
    assert [row["arm"] for row in rows] == list(ARMS)
    assert set(found["ratios"]) == {"hypervolume_vs_random", "hypervolume_vs_tpe", "trials_per_minute"}
    assert all(row["failed_trials"] == 0 for row in rows)
    for row in rows:
        assert (row["hypervolume"] > 0) == bool(row["front"])
