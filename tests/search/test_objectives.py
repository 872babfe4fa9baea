"""Rows: what is failed, feasible, and told to the sampler."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from orchestrator.config.search import SearchSettings
from orchestrator.measure.latency import Race
from orchestrator.search.objectives import front_of, merits, objectives
from tests.search.rows import evaluated, measured


def test_objectives_are_minus_the_drop_and_the_log_of_the_latency() -> None:
    gain, latency = objectives(measured(0, drop=0.01, latency=2.0))
    assert gain == -0.01
    assert latency == pytest.approx(math.log(2.0))


def test_no_row_of_the_front_loses_the_race_for_it() -> None:
    random, lost_at_all = np.random.default_rng(0), 0
    for _ in range(50):
        drops, bounds, sizes, speeds = (random.integers(1, 4, 8) for _ in range(4))
        rows = [
            dataclasses.replace(
                measured(number, drop=drops[number] / 100, latency=1 / speeds[number]),
                bytes=int(sizes[number]),
                drop_bound=bounds[number] / 100,
                digest=str(number),
            )
            for number in range(8)
        ]
        race = Race({row.digest: merits(row) for row in rows})
        lost = race.lost({row.digest: (1 / row.latency_ms, (1 / row.latency_ms,) * 2) for row in rows})
        lost_at_all += len(lost)
        assert not lost & {row.digest for row in front_of(rows)}
    assert lost_at_all > 50


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


def test_feasible_needs_all_that_is_promised() -> None:
    settings = SearchSettings.model_validate(
        {"promise": {"max_drop": 0.1, "max_changed": 0.02, "max_class_drop": 0.05}}
    )
    row = dataclasses.replace(measured(0), changed=0.06, class_drop=0.01).limited(settings)
    assert row.violations == pytest.approx({"max_drop": -0.1, "max_changed": 0.04, "max_class_drop": -0.04})
    assert not row.feasible
    assert dataclasses.replace(row, changed=0.02).limited(settings).feasible
    assert not dataclasses.replace(row, changed=0.0, class_drop=0.06).limited(settings).feasible
    assert row.limited(SearchSettings()).violations.keys() == {"max_drop"}


def test_a_drop_of_what_is_allowed_is_feasible_whatever_its_last_digits() -> None:
    for before, after, allowed in ((0.90, 0.89, 0.01), (0.95, 0.93, 0.02), (0.97, 0.94, 0.03)):
        settings = SearchSettings.model_validate({"promise": {"max_drop": allowed}})
        assert measured(0, drop=before - after).limited(settings).feasible
        assert not measured(0, drop=before - after + 1e-6).limited(settings).feasible


def test_a_failed_row_keeps_its_number_and_reason() -> None:
    row = measured(5).failed("cannot prune: depthwise. Leave it whole.")
    assert (row.number, row.status, row.reason) == (5, "failed", "cannot prune: depthwise. Leave it whole.")
    assert row.latency_ms == 0
