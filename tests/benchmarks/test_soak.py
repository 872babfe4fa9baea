"""The soak benchmark's arithmetic, and what it sees of a process."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.serving_servers import Server
from benchmarks.soak import GROWTH_BYTES, Sample, _process, judged
from orchestrator.load.generate import Report


def samples(growth: int, tasks: float = 5.0) -> list[Sample]:
    """A hundred of them; the first ten, while it warms up, are much smaller."""
    return [
        Sample(float(number), 4, 10 if number < 10 else 1000 + growth * number, 30, 12, tasks)
        for number in range(100)
    ]


def report(answered: int, refused: int, failed: int) -> Report:
    found = Report(10.0, 100.0)
    for outcome, count in (("200", answered), ("400", refused), ("503", failed)):
        for _ in range(count):
            found.note(outcome, 0.001)
    return found


def test_only_growth_after_the_warm_up_counts() -> None:
    steady = judged(samples(0), report(950, 50, 0), 0)
    assert steady["memory_growth_bytes"].value == 0
    assert all(ratio.met for ratio in steady.values())
    leaking = judged(samples(2**20), report(950, 50, 0), 1)
    assert leaking["memory_growth_bytes"].value == pytest.approx(81 * 2**20)
    assert leaking["memory_growth_bytes"].value > GROWTH_BYTES
    assert not leaking["memory_growth_bytes"].met
    assert not leaking["left_behind"].met


def test_what_is_refused_as_it_should_be_is_no_failure_and_what_is_not_known_no_zero() -> None:
    assert judged(samples(0), report(940, 50, 10), 0)["failed"].value == pytest.approx(0.01)
    unknown = judged(samples(0, math.nan), report(950, 50, 0), 0)["more_tasks"]
    assert unknown.plain()["value"] is None
    assert not unknown.met


def test_a_process_is_seen_until_it_is_gone(tmp_path: Path) -> None:
    server = Server("sleeps", ("-c", "import time; time.sleep(60)"), 1, tmp_path / "server", {})
    (number,) = server.processes()
    found = _process(number)
    assert found is not None
    assert all(value > 0 for value in found)
    server.stop()
    assert _process(number) is None
