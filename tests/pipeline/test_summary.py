"""The summary's figures of further targets, and the table for people."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.measure.promise import Verdict
from orchestrator.pipeline.evaluation import Evaluation
from orchestrator.pipeline.searching import Found
from orchestrator.pipeline.summary import _target, print_table, summarize
from orchestrator.search.arms import EAGER, MEMBER
from tests.search import fake
from tests.search.rows import measured, parent


def test_on_another_target_only_variants_are_on_the_front() -> None:
    whole = replace(parent(), arm=EAGER)
    other = replace(measured(-1000, drop=0.001, latency=0.1, size=1), arm=MEMBER)
    chosen, slower = measured(0, drop=-0.02, latency=1.5), measured(1, drop=-0.03, latency=3.0)
    found = Found(whole, (chosen, slower), (chosen,), chosen, None, "")
    assert _target(found, (chosen, slower, whole, other)) == {
        "front": ["v0", "v1"],
        "best": "v0",
        "chosen_loss": 0.0,
        "failed": {},
    }


def test_the_table_tells_rows_and_threads_of_each_latency(capsys: pytest.CaptureFixture[str]) -> None:
    summary = fake.summary()
    print_table(summary, Path("digits"))
    said = capsys.readouterr().out
    assert "latency of 32 rows on 1 thread(s)" in said
    assert "32 on 1" not in said
    summary["search"]["chosen"]["latency_ms"]["batch"] = 1
    for point in summary["search"]["front"]:
        point["latency_ms"]["batch"] = 1
    print_table(summary, Path("digits"))
    said = capsys.readouterr().out
    assert "latency of" not in said
    assert " 32 on 1" in said
    assert " 1 on 1" in said


def test_the_last_verdict_stands_beside_the_reason_where_none_qualifies() -> None:
    verdict = Verdict("cannot be told", 0.004, 0.03, 50, 0.02, 0.95, "test", "too few rows")
    found = Found(parent(), (measured(0),), (measured(0),), None, verdict, "none qualifies")
    run: Any = SimpleNamespace(
        config=SimpleNamespace(name="toy", seed=0),
        progress=SimpleNamespace(seconds=1.0),
        dataset=SimpleNamespace(digest="D", facts={}),
    )
    summary = summarize(run, found, Evaluation({}, [], None, {}, {}, {}), {})
    assert summary["search"]["chosen"] is None
    assert summary["search"]["verdict"]["status"] == "cannot be told"
