"""The cost model: by hand, and against calls that are really made."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.ensemble.call_cost import CallTime, Stage, arrivals, call_cost

FAST = CallTime({1: 1.0, 16: 4.0}, tail=1.5)
SLOW = CallTime({1: 10.0, 16: 40.0}, tail=2.0)


def test_a_call_time_is_a_line_between_what_was_measured() -> None:
    assert FAST.ms([0, 1, 6, 16, 32]).tolist() == [0.0, 1.0, 2.0, 4.0, 8.0]


def test_one_row_reaches_the_second_stage_or_does_not() -> None:
    stages = [Stage(1.0, (FAST,)), Stage(0.25, (SLOW,))]
    found = call_cost(stages, 1, "fused", walk_ms=0.2, hop_ms=9.0)
    assert found.latency_ms == pytest.approx(1.0 + 0.2 + 0.25 * (10.0 + 0.2))
    assert found.core_ms == found.latency_ms
    # A quarter of the calls go on, so the 99th percentile is one of them.
    assert found.p99_ms == pytest.approx(1.5 * 1.0 + 0.2 + 2.0 * 10.0 + 0.2)
    rarely = call_cost([Stage(1.0, (FAST,)), Stage(0.005, (SLOW,))], 1, "fused", walk_ms=0.2, hop_ms=9.0)
    assert rarely.p99_ms == pytest.approx(1.5 * 1.0 + 0.2)


def test_side_by_side_the_slowest_counts_and_cores_are_all_busy() -> None:
    stages = [Stage(1.0, (FAST, SLOW))]
    fused = call_cost(stages, 16, "fused", walk_ms=0.1, hop_ms=3.0)
    apart = call_cost(stages, 16, "distributed", walk_ms=0.1, hop_ms=3.0)
    assert fused.latency_ms == pytest.approx(44.2)
    assert apart.latency_ms == pytest.approx(40.0 + 0.2 + 3.0)
    assert apart.core_ms == pytest.approx(44.0 + 0.2 + 6.0)


def test_a_batch_pays_for_whole_calls_of_the_rows_that_go_on() -> None:
    """Against a simulation of 20,000 batches."""
    rng = np.random.default_rng(0)
    going = rng.binomial(16, 0.1, size=20_000)
    times = FAST.ms(16) + SLOW.ms(going)
    found = call_cost([Stage(1.0, (FAST,)), Stage(0.1, (SLOW,))], 16, "fused", walk_ms=0.0, hop_ms=0.0)
    assert found.latency_ms == pytest.approx(times.mean(), rel=0.02)
    high = np.quantile(going, 0.99)
    assert found.p99_ms == pytest.approx(1.5 * 4.0 + 2.0 * float(SLOW.ms(high)))


def test_chances_sum_to_one_and_the_percentile_is_the_binomials() -> None:
    for batch, reach in ((1, 0.3), (32, 0.05), (256, 0.9)):
        chances, asked, high = arrivals(batch, reach)
        assert chances.sum() == pytest.approx(1.0)
        assert asked == pytest.approx(1 - (1 - reach) ** batch)
        assert chances[: high + 1].sum() >= 0.99 > chances[:high].sum()
    assert arrivals(4, 0.0)[1:] == (0.0, 0)
    assert arrivals(4, 1.0)[1:] == (1.0, 4)
