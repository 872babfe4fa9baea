"""A few variants are preselected and looked at in order; or a sentence says why none qualifies."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.config.search import Promise
from orchestrator.measure.promise import Status, Verdict
from orchestrator.search.choose import choose, preselect
from orchestrator.search.objectives import TrialRow
from tests.search.rows import evaluated, measured, parent

PROMISE = Promise(max_drop=0.02)


def verdict(holds: bool, otherwise: Status = "fails") -> Verdict:
    status: Status = "holds" if holds else otherwise
    return Verdict(
        status, 0.004, 0.011 if holds else 0.03, 500, 0.02, 0.95, "test", "drop 0.004, at most ..."
    )


def order(*rows: TrialRow) -> list[int]:
    """Numbers of the rows in the order in which they would be looked at."""
    return [row.number for row in preselect(rows, parent(), PROMISE)[0]]


def test_from_the_safest_to_the_fastest() -> None:
    fast_but_bad = measured(0, drop=0.05, latency=0.2)
    safe = measured(1, drop=0.0, latency=2.0)
    fast = measured(2, drop=0.01, latency=1.0)
    slow_and_worse = measured(3, drop=0.005, latency=2.5)
    assert order(fast_but_bad, slow_and_worse, fast, safe) == [1, 2]


def test_a_variant_within_the_noise_of_a_safer_one_is_left_out() -> None:
    assert order(measured(0, drop=0.0, latency=1.0), measured(1, drop=0.005, latency=0.95)) == [0]


def test_of_equally_safe_ones_the_slowest_comes_first_and_of_those_the_smallest() -> None:
    assert order(measured(0, latency=1.0), measured(1, latency=2.0)) == [1, 0]
    assert order(measured(0, size=100), measured(1, size=50)) == [1]


def test_a_fast_one_that_fails_leaves_an_equally_safe_slower_one() -> None:
    slow, fast = measured(0, latency=2.0), measured(1, latency=1.0)
    choice = choose([fast, slow], parent(), PROMISE, lambda row: verdict(holds=row is slow))
    assert choice.row == slow


def test_at_most_so_many_looks_and_both_ends_among_them() -> None:
    rows = [measured(number, drop=0.001 * number, latency=4.0 / 1.5**number) for number in range(9)]
    assert order(*rows) == [1, 3, 6, 8]


def test_not_faster_but_smaller_qualifies() -> None:
    smaller = measured(0, latency=4.1, size=30)
    choice = choose([smaller], parent(), PROMISE, lambda _: verdict(holds=True))
    assert choice.row == smaller
    assert choice.reason.startswith("v0 takes 30% of its bytes")


def test_neither_faster_nor_smaller_does_not() -> None:
    # Its speed-up's interval reaches below 1.
    rows, reason = preselect([measured(0, latency=3.9)], parent(), PROMISE)
    assert rows == []
    assert reason.startswith("none qualifies")
    assert "faster or smaller" in reason


def test_order_of_the_rows_does_not_matter() -> None:
    rows = [measured(number, drop=0.001 * (number % 3), latency=1.0 + 0.01 * number) for number in range(6)]
    assert order(*rows) == order(*reversed(rows))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "there was no trial"),
        ([evaluated(0).failed("no compiler")], "no compiler"),
        (
            [measured(0, drop=0.08), measured(1, drop=0.05)],
            "nearest were: v1 (drops 0.0500, 1 ms, 100 bytes), v0",
        ),
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


ROWS = [measured(number, drop=0.004 * number, latency=4.0 / 2**number) for number in range(1, 4)]


@pytest.mark.parametrize(
    ("holding", "looked", "chosen"),
    [({1, 2, 3}, [1, 2, 3], 3), ({1, 3}, [1, 2], 1), (set(), [1], None)],
)
def test_the_looks_end_at_the_first_promise_that_does_not_hold(
    holding: set[int], looked: list[int], chosen: int | None
) -> None:
    seen: list[int] = []

    def look(row: TrialRow) -> Verdict:
        seen.append(row.number)
        return verdict(holds=row.number in holding)

    choice = choose(ROWS, parent(), PROMISE, look)
    assert seen == looked
    assert (choice.row.number if choice.row else None) == chosen
    assert choice.verdict == verdict(holds=chosen is not None)
    assert ("the promise holds" if chosen else "does not hold") in choice.reason


def test_too_few_rows_are_not_called_a_promise_that_does_not_hold() -> None:
    found = choose(ROWS, parent(), PROMISE, lambda _: verdict(holds=False, otherwise="cannot be told"))
    assert (found.row, found.verdict and found.verdict.status) == (None, "cannot be told")
    assert "it cannot be told whether the promise holds" in found.reason
    assert "does not hold" not in found.reason


def test_looks_of_all_starts_count_together() -> None:
    """A search that goes on asks as often as one that was done at once, and keeps what was shown."""
    promise = Promise(max_drop=0.02, looks=2)
    holds, fails = verdict(holds=True), verdict(holds=False)
    before = {(ROWS[0].digest, ROWS[0].execution): holds}
    seen: list[int] = []

    def look(row: TrialRow) -> Verdict:
        seen.append(row.number)
        return fails

    choice = choose(ROWS, parent(), promise, look, before)
    assert (seen, choice.row) == ([3], ROWS[0]), "two of three are candidates"
    assert choice.reason.endswith("; 2 of at most 2 variants looked at in all")

    # A safer one that came since cannot be asked about, and takes nothing away.
    before[ROWS[2].digest, ROWS[2].execution] = fails
    safer = measured(4, drop=-0.01, latency=3.9, size=50)
    choice = choose([*ROWS, safer], parent(), promise, look, before)
    assert (seen, choice.row, choice.verdict) == ([3], ROWS[0], holds)
    choice = choose([safer, ROWS[2]], parent(), promise, look, before)
    assert (choice.row, choice.verdict) == (None, fails)
    assert "v3 was the safest on validation of those looked at, but" in choice.reason
    choice = choose([safer], parent(), promise, look, before)
    assert (seen, choice.row, choice.verdict) == ([3], None, None)
    assert "no look is left for v4" in choice.reason


def test_a_regression_metric_needs_nothing_special() -> None:
    """Smaller is better there: the drop already points the right way."""
    row = dataclasses.replace(measured(0, drop=-0.1), metric=0.3)
    assert order(row) == [0]
