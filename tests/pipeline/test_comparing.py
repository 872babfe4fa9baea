"""Then and now, without a model: which figure counts as reproduced."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from orchestrator.measure.latency import Latency
from orchestrator.measure.machine import machine
from orchestrator.pipeline.comparing import (
    Check,
    Difference,
    Figure,
    Reproduction,
    differences,
    latency_checks,
    quality_check,
    show,
)

RECORD: dict[str, Any] = {"median_ms": 1.0, "ci": [0.98, 1.02], "ratio": 3.0, "ratio_ci": [2.9, 3.1]}
MADE = {"threads": 1, "torch": "2.13.0", "isa": "AVX512"}


def latency(median: float, ratio: float = 1.0, width: float = 0.01) -> Latency:
    ci = (median * (1 - width), median * (1 + width))
    ratio_ci = (ratio * (1 - width), ratio * (1 + width))
    return Latency(32, 1, "eager", median, ci, median, ratio, ratio_ci)


@pytest.mark.parametrize(
    ("median", "ratio", "parent", "status", "reason"),
    [
        (1.01, 3.0, 3.0, "holds", "in the recorded interval"),
        (1.025, 3.0, 3.0, "near", "the intervals overlap"),
        (1.04, 3.0, 3.1, "near", "4.0% from what was recorded, within the noise of 5%"),
        (1.5, 3.0, 4.5, "explained", "the whole machine is 1.50 times slower"),
        (0.5, 3.0, 1.5, "explained", "the whole machine is 2.00 times faster"),
        (1.5, 2.0, 3.0, "fails", "outside of the recorded interval"),
    ],
)
def test_a_latency_measured_again(
    median: float, ratio: float, parent: float, status: str, reason: str
) -> None:
    own, over = latency_checks("eager", RECORD, latency(median, ratio), latency(parent), 0.05)
    assert own.status == status
    assert reason in own.reason
    assert own.decides
    assert not over.decides


@pytest.mark.parametrize(("own_width", "ratio_width"), [(0.5, 0.5), (0.01, 0.5)])
def test_a_noisy_measurement_tells_nothing(own_width: float, ratio_width: float) -> None:
    """Wide intervals overlap with everything: that is no agreement."""
    now = dataclasses.replace(
        latency(1.5, width=own_width), ratio=2.0, ratio_ci=(2.0 - 2 * ratio_width, 2.0 + 2 * ratio_width)
    )
    own, over = latency_checks("eager", RECORD, now, latency(3.0), 0.05)
    assert (own.status, over.status) == ("unclear", "unclear")
    assert "too noisy to tell: 3.0 times" in own.reason
    found = Reproduction("a", "ab" * 32, None, (), (), (own, over))
    assert not found.reproduces
    assert found.verdict.startswith("it cannot be told")


def test_a_noisy_latency_is_explained_by_a_steady_ratio() -> None:
    own, _ = latency_checks("eager", RECORD, latency(1.5, 3.0), latency(4.5), 0.05)
    wide = dataclasses.replace(latency(1.5, 3.0), ci=(1.0, 3.0))
    assert own.status == "explained" == latency_checks("eager", RECORD, wide, latency(4.5), 0.05)[0].status


def test_without_tolerance_only_the_intervals_count() -> None:
    own, _ = latency_checks("eager", RECORD, latency(1.04, 2.5), latency(2.6), 0.0)
    assert own.status == "fails"


def test_a_metric_is_in_its_interval_or_not() -> None:
    then = Figure(0.9, (0.88, 0.92))
    assert quality_check("accuracy", then, Figure(0.88)).status == "holds"
    assert quality_check("accuracy", then, Figure(0.8799)).status == "fails"
    assert quality_check("accuracy", None, Figure(0.9)).status == "unknown"


def test_what_differs_is_named_once() -> None:
    here = machine()
    assert differences(MADE, MADE, [here, here]) == []
    then = {**here, "cpu": "Another", "isa": ["another"], "memory_bytes": 1}
    then["versions"] = {**here["versions"], "torch": "2.12.0"}
    found = differences({**MADE, "torch": "2.12.0"}, MADE, [then, then])
    assert Difference("torch", "2.12.0", "2.13.0") in found
    assert Difference("processor", "Another", here["cpu"]) in found
    assert Difference("instructions of the processor", "another", " ".join(here["isa"])) in found
    assert len(found) == len(set(found))
    assert not [difference for difference in found if "memory" in difference.what]


def test_more_threads_than_cores_are_named() -> None:
    made = {**MADE, "threads": 4096}
    assert [found.what for found in differences(made, made, [])] == ["cores"]


def test_people_see_the_differences_first(capsys: pytest.CaptureFixture[str]) -> None:
    checks = (
        Check("digest", "ab" * 32, "cd" * 32, "explained", "it cannot be equal with another torch"),
        Check("accuracy", Figure(0.9, (0.8, 1.0)), Figure(0.7), "fails", "outside [of it]"),
    )
    found = Reproduction(
        "a/b", "ab" * 32, "ef" * 32, ("bf16",), (Difference("torch", "2.12", "2.13"),), checks
    )
    show(found)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["a/b is abababababab: bf16 on efefefefefef", "differs: torch: 2.12 then, 2.13 now"]
    assert "abababababab" in lines[3]
    assert "0.9000 (0.8000 to 1.0000)  0.7000" in lines[4]
    assert "outside [of it]" in lines[4]
    assert lines[-1] == "it does not reproduce"
    assert found.plain()["checks"][1]["then"] == {"value": 0.9, "ci": [0.8, 1.0]}
