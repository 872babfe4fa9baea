"""The cost model: by hand, and against calls that are really made."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from orchestrator.config.ensemble import Member, Node
from orchestrator.config.measure import LatencySettings
from orchestrator.ensemble.expected import CallTime, Stage, arrivals, expected
from orchestrator.ensemble.tree import predict
from orchestrator.measure.latency import compare
from tests.ensemble.toys import A, B, cascade, parallel

FAST = CallTime({1: 1.0, 16: 4.0}, tail=1.5)
SLOW = CallTime({1: 10.0, 16: 40.0}, tail=2.0)


def test_a_call_time_is_a_line_between_what_was_measured() -> None:
    assert FAST.ms([0, 1, 6, 16, 32]).tolist() == [0.0, 1.0, 2.0, 4.0, 8.0]


def test_one_row_reaches_the_second_stage_or_does_not() -> None:
    stages = [Stage(1.0, (FAST,)), Stage(0.25, (SLOW,))]
    found = expected(stages, 1, "fused", walk_ms=0.2, hop_ms=9.0)
    assert found.latency_ms == pytest.approx(1.0 + 0.2 + 0.25 * (10.0 + 0.2))
    assert found.core_ms == found.latency_ms
    # A quarter of the calls go on, so the 99th percentile is one of them.
    assert found.p99_ms == pytest.approx(1.5 * 1.0 + 0.2 + 2.0 * 10.0 + 0.2)
    rarely = expected([Stage(1.0, (FAST,)), Stage(0.005, (SLOW,))], 1, "fused", walk_ms=0.2, hop_ms=9.0)
    assert rarely.p99_ms == pytest.approx(1.5 * 1.0 + 0.2)


def test_side_by_side_the_slowest_counts_and_cores_are_all_busy() -> None:
    stages = [Stage(1.0, (FAST, SLOW))]
    fused = expected(stages, 16, "fused", walk_ms=0.1, hop_ms=3.0)
    apart = expected(stages, 16, "distributed", walk_ms=0.1, hop_ms=3.0)
    assert fused.latency_ms == pytest.approx(44.2)
    assert apart.latency_ms == pytest.approx(40.0 + 0.2 + 3.0)
    assert apart.core_ms == pytest.approx(44.0 + 0.2 + 6.0)


def test_a_batch_pays_for_whole_calls_of_the_rows_that_go_on() -> None:
    """Against a simulation of 20,000 batches."""
    rng = np.random.default_rng(0)
    going = rng.binomial(16, 0.1, size=20_000)
    times = FAST.ms(16) + SLOW.ms(going)
    found = expected([Stage(1.0, (FAST,)), Stage(0.1, (SLOW,))], 16, "fused", walk_ms=0.0, hop_ms=0.0)
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


def _sleeper(
    call_ms: float, row_ms: float, answers: npt.NDArray[np.float32]
) -> Callable[[npt.NDArray[Any]], Any]:
    """A member whose calls take a known time and whose answers are a table's."""

    def answer(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        time.sleep((call_ms + row_ms * len(rows)) / 1e3)
        return np.asarray(answers[rows])

    return answer


def test_what_is_expected_is_what_is_measured() -> None:
    """A mean and a cascade: expected from their members' own measurements, then measured as a whole."""
    rng = np.random.default_rng(1)
    table = {member: (4 * rng.normal(size=(400, 3))).astype(np.float32) for member in (A, B)}
    members = {A: _sleeper(1.0, 0.1, table[A]), B: _sleeper(4.0, 0.5, table[B])}
    sizes, batches = (1, 8), iter(np.resize(np.arange(400), 4000).reshape(-1, 8))
    settings = LatencySettings(batch=8, blocks=5, block_ms=20)
    calls: dict[str, Callable[[], object]] = {
        f"{member.name}{size}": lambda member=member, size=size: members[member](np.arange(size))  # type: ignore[misc]
        for member in (A, B)
        for size in sizes
    }
    tree = cascade(A, B, thresholds=(0.97,))

    def whole(tree: Node) -> Callable[[], object]:
        return lambda: predict(tree, members, next(batches), "classification")

    calls |= {"cascade": whole(tree), "mean": whole(parallel(A, B))}
    found = {name: latency.median_ms for name, latency in compare(calls, settings, baseline="a1").items()}

    def timed(member: Member) -> CallTime:
        return CallTime({size: found[f"{member.name}{size}"] for size in sizes})

    reach = float(
        (np.exp(table[A] - np.logaddexp.reduce(table[A], axis=1)[:, None]).max(axis=1) < 0.97).mean()
    )
    assert 0.2 < reach < 0.8
    for name, stages in {
        "cascade": [Stage(1.0, (timed(A),)), Stage(reach, (timed(B),))],
        "mean": [Stage(1.0, (timed(A), timed(B)))],
    }.items():
        guess = expected(stages, 8, "fused", walk_ms=0.1, hop_ms=0.0).latency_ms
        assert guess == pytest.approx(found[name], rel=0.25), name
