"""Rows: what is failed, feasible, and told to the sampler."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from orchestrator.search.objectives import merits, objectives
from tests.search.rows import evaluated, measured


def test_objectives_are_minus_the_drop_and_the_log_of_the_latency() -> None:
    gain, latency = objectives(measured(0, drop=0.01, latency=2.0))
    assert gain == -0.01
    assert latency == pytest.approx(math.log(2.0))


def test_a_row_beyond_a_limit_has_no_merits_but_the_latency_is_no_limit_yet() -> None:
    row = dataclasses.replace(evaluated(0, drop=0.01), bytes=100)
    assert merits(row) == (-0.01, -100.0)
    late, bad = (dataclasses.replace(row, violations={name: 0.1}) for name in ("max_latency_ms", "max_drop"))
    assert merits(late) == (-0.01, -100.0)
    assert merits(bad) == (-math.inf, -math.inf)


@pytest.mark.parametrize("latency", [math.nan, math.inf, 0.0, -1.0])
def test_a_latency_that_is_no_number_fails_the_trial(latency: float) -> None:
    row = evaluated(3).measured(latency, (1.0, 1.0), 1.0, (1.0, 1.0))
    assert row.status == "failed"
    assert not row.ok
    assert "not finite" in row.reason
    json.dumps(row.plain(), allow_nan=False)


def test_feasible_needs_a_finished_trial_within_the_drop() -> None:
    assert measured(0, drop=0.02).feasible
    assert not measured(0, drop=0.021).feasible
    assert not evaluated(0, drop=0.0).feasible
    assert not measured(0).failed("no").feasible


def test_a_failed_row_keeps_its_number_and_reason() -> None:
    row = measured(5).failed("cannot prune: depthwise. Leave it whole.")
    assert (row.number, row.status, row.reason) == (5, "failed", "cannot prune: depthwise. Leave it whole.")
    assert row.latency_ms == 0
