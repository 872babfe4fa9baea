"""From the trials to the one variant whose promise is tested on the contract part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from orchestrator.config.search import Promise
from orchestrator.measure.quality import Verdict
from orchestrator.search.objectives import TrialRow


class Choice(NamedTuple):
    """The chosen variant, or none; `verdict` is the contract part's answer when it was asked."""

    row: TrialRow | None
    verdict: Verdict | None
    reason: str


def choose(
    rows: Sequence[TrialRow], parent: TrialRow, promise: Promise, look: Callable[[TrialRow], Verdict]
) -> Choice:
    """Preselect one variant on the validation part, then look at the contract part once.

    One look only: with several, a promise that does not hold would pass by chance more often than
    `1 - confidence`.
    """
    candidate, reason = preselect(rows, parent, promise)
    if candidate is None:
        return Choice(None, None, reason)
    verdict = look(candidate)
    if not verdict.holds:
        return Choice(
            None,
            verdict,
            f"none qualifies: {candidate.name} was the best on validation, but on the contract part "
            f"the promise does not hold ({verdict.reason})",
        )
    return Choice(candidate, verdict, f"{reason}; on the contract part the promise holds ({verdict.reason})")


def preselect(rows: Sequence[TrialRow], parent: TrialRow, promise: Promise) -> tuple[TrialRow | None, str]:
    """The fastest variant that keeps the drop on validation and is measurably better than its parent.

    Variants whose upper confidence bound of the drop already keeps the promise on validation come
    first: they are the ones likely to keep it on other rows. Variants whose latency interval overlaps
    the fastest one's are tied; the smaller drop wins, then fewer bytes.

    Returns:
        The variant, or None, and the reason as one sentence without a final stop.
    """
    finished = [row for row in rows if row.ok]
    if not finished:
        first = next((row.reason for row in rows), "there was no trial")
        return None, f"none qualifies: no trial finished ({first})"
    feasible = [row for row in finished if row.feasible]
    if not feasible:
        closest = min(finished, key=lambda row: (row.drop, row.number))
        return None, (
            f"none qualifies: no variant stays within a drop of {promise.max_drop:g} on validation; "
            f"the closest, {closest.name}, drops {closest.drop:.4f}"
        )
    better = [row for row in feasible if row.speedup_ci[0] > 1 or row.bytes < parent.bytes]
    if not better:
        return None, (
            f"none qualifies: none of the {len(feasible)} variants within the allowed drop is measurably "
            "faster or smaller than its parent"
        )
    safe = [row for row in better if row.drop_bound <= promise.max_drop]
    picked = _fastest(safe or better)
    return picked, f"{picked.name} {_gain(picked, parent)}"


def _fastest(rows: Sequence[TrialRow]) -> TrialRow:
    first = min(rows, key=lambda row: (row.latency_ms, row.number))
    tied = [row for row in rows if row.latency_ci[0] <= first.latency_ci[1]]
    return min(tied, key=lambda row: (row.drop, row.bytes, row.latency_ms, row.number))


def _gain(row: TrialRow, parent: TrialRow) -> str:
    """What the variant is better in, with the interval."""
    said = []
    low, high = row.speedup_ci
    if low > 1:
        said.append(f"runs {row.speedup:.2f} times as fast as its parent (interval {low:.2f} to {high:.2f})")
    if row.bytes < parent.bytes:
        said.append(f"takes {row.bytes / parent.bytes:.0%} of its bytes")
    return " and ".join(said)
