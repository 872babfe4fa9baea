"""From the trials to the variant that keeps the promise on the contract part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from orchestrator.config.measure import Execution
from orchestrator.config.search import Promise
from orchestrator.measure.promise import SAID, Verdict
from orchestrator.search.objectives import TrialRow

Looks = Mapping[tuple[str, Execution], Verdict]
"""The contract part's answers, by the variant's digest and execution."""


class Choice(NamedTuple):
    """The chosen variant, or none; `verdict` is the contract part's answer when it was asked."""

    row: TrialRow | None
    verdict: Verdict | None
    reason: str


def choose(
    rows: Sequence[TrialRow],
    parent: TrialRow,
    promise: Promise,
    look: Callable[[TrialRow], Verdict],
    before: Looks = MappingProxyType({}),
) -> Choice:
    """Look at the contract part for a few variants, from the safest to the fastest; take the last that holds.

    The order is fixed on validation rows alone and the looks end at the first promise that does not hold, so
    each may be made at the full confidence (fixed-sequence testing; Maurer et al. 1995; Angelopoulos et al.,
    https://arxiv.org/abs/2110.01052, section 2.3).

    A search that is extended has another order, and could look until something holds by chance. So
    `promise.looks` bounds its looks over all its starts: a variant that has its answer is not asked about
    again, and where no look is left what was shown before still stands.

    Args:
        rows: of trials and honest arms, in whatever state.
        parent: what they are compared with.
        promise: what is to hold.
        look: asks the contract part.
        before: what it said in earlier starts of the search.
    """
    candidates, reason = preselect(rows, parent, promise)
    if not candidates:
        return Choice(None, None, reason)
    looked, asked = dict(before), None
    for candidate in candidates:
        if _key(candidate) not in looked:
            if len(looked) >= promise.looks:
                continue
            looked[_key(candidate)] = look(candidate)
        asked = candidate
        if not looked[_key(candidate)].holds:
            break
    told = f"{len(looked)} of at most {promise.looks} variants looked at in all"
    held = [row for row in rows if row.feasible and _key(row) in looked and looked[_key(row)].holds]
    if held:
        row = _chain(held)[-1]
        kept = looked[_key(row)]
        said = f"{row.name} {_gain(row, parent)}; on the contract part the promise holds ({kept.reason})"
        return Choice(row, kept, f"{said}; {told}")
    if asked is None:
        said = f"none qualifies: no look is left for {candidates[0].name}, the safest on validation"
        return Choice(None, None, f"{said}; {told}")
    verdict, of = looked[_key(asked)], "" if asked is candidates[0] else " of those looked at"
    said = (
        f"none qualifies: {asked.name} was the safest on validation{of}, but on the contract part "
        f"{SAID[verdict.status]} ({verdict.reason})"
    )
    return Choice(None, verdict, f"{said}; {told}")


def _key(row: TrialRow) -> tuple[str, Execution]:
    return row.digest, row.execution


def preselect(rows: Sequence[TrialRow], parent: TrialRow, promise: Promise) -> tuple[list[TrialRow], str]:
    """At most `promise.looks` variants, each measurably faster than the one before it, the safest first.

    A candidate stays within the allowed drop on validation and is measurably faster or smaller than its
    parent. The safest has the least upper confidence bound of its drop on validation; of equal ones
    the slowest comes first.

    Returns:
        The candidates in the order to look at them, or none and the reason as a sentence without its stop.
    """
    finished = [row for row in rows if row.ok]
    if not finished:
        first = next((row.reason for row in rows), "there was no trial")
        return [], f"none qualifies: no trial finished ({first})"
    feasible = [row for row in finished if row.feasible]
    if not feasible:
        return [], f"none qualifies: no variant stays within {_limits(finished)}; {nearest(finished)}"
    better = [row for row in feasible if row.speedup_ci[0] > 1 or row.bytes < parent.bytes]
    if not better:
        return [], (
            f"none qualifies: none of the {len(feasible)} variants within the allowed drop is measurably "
            "faster or smaller than its parent"
        )
    return _thinned(_chain(better), promise.looks), ""


_NEAREST = 3


def _limits(rows: Sequence[TrialRow]) -> str:
    """The limits that the rows were held to, in words."""
    names = {
        "max_drop": "the allowed drop on validation",
        "max_changed": "max_changed",
        "max_class_drop": "max_class_drop",
        "max_latency_ms": "max_latency_ms",
        "max_bytes": "max_bytes",
    }
    return " and ".join(words for name, words in names.items() if any(name in row.violations for row in rows))


def nearest(rows: Sequence[TrialRow]) -> str:
    """The rows that come closest to all limits, with their figures."""

    def beyond(row: TrialRow) -> tuple[float, int]:
        return sum(max(over, 0.0) for over in row.violations.values()), row.number

    said = [
        f"{row.name} (drops {row.drop:.4f}, {row.latency_ms:.3g} ms, {row.bytes:,} bytes)"
        for row in sorted(rows, key=beyond)[:_NEAREST]
    ]
    return f"nearest were: {', '.join(said)}"


def _chain(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """From the least bound on, every row that is faster than all before it by more than the noise.

    On few rows many bounds are equal. Of equal ones the slowest comes first: least was done to it, and when a
    faster one fails on the contract part, the promise of that one still stands.
    """
    chain: list[TrialRow] = []
    for row in sorted(rows, key=lambda row: (row.drop_bound, -row.latency_ms, row.bytes, row.number)):
        if not chain or row.latency_ci[1] < chain[-1].latency_ci[0]:
            chain.append(row)
    return chain


def _thinned(chain: list[TrialRow], most: int) -> list[TrialRow]:
    """At most `most` rows, evenly spaced; of one row the safest is kept, else both ends."""
    if len(chain) <= most:
        return chain
    return [chain[round(place * (len(chain) - 1) / max(most - 1, 1))] for place in range(most)]


def _gain(row: TrialRow, parent: TrialRow) -> str:
    """What the variant is better in, with the interval."""
    said = []
    low, high = row.speedup_ci
    if low > 1:
        said.append(f"runs {row.speedup:.2f} times as fast as its parent (interval {low:.2f} to {high:.2f})")
    if row.bytes < parent.bytes:
        said.append(f"takes {row.bytes / parent.bytes:.0%} of its bytes")
    return " and ".join(said)
