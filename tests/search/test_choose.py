"""One variant is preselected, and looked at once; or a sentence says why none qualifies."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.config.search import Promise
from orchestrator.measure.quality import Verdict
from orchestrator.search.choose import choose, preselect
from orchestrator.search.objectives import TrialRow
from tests.search.rows import evaluated, measured, parent

PROMISE = Promise(max_drop=0.02)


def verdict(holds: bool) -> Verdict:
    return Verdict(holds, 0.004, 0.011 if holds else 0.03, 500, 0.02, 0.95, "test", "drop 0.004, at most ...")


def picked(*rows: TrialRow) -> TrialRow | None:
    return preselect(rows, parent(), PROMISE)[0]


def test_the_fastest_feasible_variant_is_preselected() -> None:
    fast_but_bad = measured(0, drop=0.05, latency=0.2)
    slow = measured(1, latency=2.0)
    fast = measured(2, drop=0.01, latency=1.0)
    assert picked(fast_but_bad, slow, fast) == fast


def test_within_noise_the_smaller_drop_wins_and_then_fewer_bytes() -> None:
    fastest = measured(0, drop=0.01, latency=1.0)
    tied = measured(1, drop=0.005, latency=1.05)
    apart = measured(2, drop=0.0, latency=1.5)
    assert picked(fastest, tied, apart) == tied
    smaller = measured(3, drop=0.005, latency=1.06, size=50)
    assert picked(fastest, tied, smaller, apart) == smaller


def test_a_variant_whose_bound_keeps_the_promise_on_validation_comes_first() -> None:
    risky = measured(0, drop=0.019, latency=0.5)
    safe = measured(1, drop=0.0, latency=1.0)
    assert picked(risky, safe) == safe
    assert picked(risky) == risky


def test_not_faster_but_smaller_qualifies() -> None:
    smaller = measured(0, latency=4.1, size=30)
    row, reason = preselect([smaller], parent(), PROMISE)
    assert row == smaller
    assert reason == "v0 takes 30% of its bytes"


def test_neither_faster_nor_smaller_does_not() -> None:
    # Its speed-up's interval reaches below 1.
    row, reason = preselect([measured(0, latency=3.9)], parent(), PROMISE)
    assert row is None
    assert reason.startswith("none qualifies")
    assert "faster or smaller" in reason


def test_order_of_the_rows_does_not_matter() -> None:
    rows = [measured(number, drop=0.001 * (number % 3), latency=1.0 + 0.01 * number) for number in range(6)]
    assert picked(*rows) == picked(*reversed(rows))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "there was no trial"),
        ([evaluated(0).failed("no compiler")], "no compiler"),
        ([measured(0, drop=0.08), measured(1, drop=0.05)], "the closest, v1, drops 0.0500"),
    ],
)
def test_none_qualifies_says_why(rows: list[TrialRow], words: str) -> None:
    def look(row: TrialRow) -> Verdict:
        raise AssertionError(f"looked at {row.name}")

    choice = choose(rows, parent(), PROMISE, look)
    assert choice.row is None
    assert choice.verdict is None
    assert choice.reason.startswith("none qualifies")
    assert words in choice.reason


def test_the_contract_part_is_looked_at_once_and_decides() -> None:
    looked: list[int] = []
    rows = [measured(0, latency=1.0), measured(1, latency=2.0)]

    def look(row: TrialRow) -> Verdict:
        looked.append(row.number)
        return verdict(holds=False)

    refused = choose(rows, parent(), PROMISE, look)
    assert looked == [0]
    assert refused.row is None
    assert refused.verdict == verdict(holds=False)
    assert "does not hold" in refused.reason
    kept = choose(rows, parent(), PROMISE, lambda row: verdict(holds=row.number == 0))
    assert kept.row == rows[0]
    assert "4.00 times as fast" in kept.reason


def test_a_regression_metric_needs_nothing_special() -> None:
    """Smaller is better there: the drop already points the right way."""
    row = dataclasses.replace(measured(0, drop=-0.1), metric=0.3)
    assert picked(row) == row
