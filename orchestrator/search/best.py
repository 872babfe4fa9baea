"""From the trials of a training search to the one model that is named the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.config.search import Searching
from orchestrator.search.choose import nearest
from orchestrator.search.objectives import TrialRow


class Best(NamedTuple):
    """The best model, which is the parent where no trial is better, and a sentence without its stop."""

    row: TrialRow
    reason: str


def best_of(rows: Sequence[TrialRow], parent: TrialRow, settings: Searching, metric: str) -> Best:
    """The trial with the best metric within every limit; of equal ones the fastest, then the smallest.

    With limits on latency or bytes that the parent does not keep, a trial may be worse than the parent. The
    metric is that of the rows by which the trial was chosen, so it flatters; the test part tells the truth.
    """
    finished = [row for row in rows if row.ok]
    within = [row for row in finished if row.feasible]
    if not within:
        return Best(parent, f"none qualifies: no trial stays within its limits; {nearest(finished)}")
    best = min(within, key=lambda row: (row.drop, row.latency_ms, row.bytes, row.number))
    if best.drop >= 0 and parent.limited(settings).feasible and not _cheaper(best, parent):
        return Best(parent, f"none of the {len(within)} trials within the limits beats the model as it is")
    return Best(
        best,
        f"{best.name} reaches {metric} {best.metric:.4f} on the rows that chose it ({_change(best)} the "
        f"model as it is), at {best.latency_ms:.3g} ms a batch ({best.speedup:.2f} times its speed) and "
        f"{best.bytes:,} bytes",
    )


def _cheaper(row: TrialRow, parent: TrialRow) -> bool:
    """Whether a row that is as good as the parent is measurably faster or smaller."""
    return row.drop == 0 and (row.speedup_ci[0] > 1 or row.bytes < parent.bytes)


def _change(row: TrialRow) -> str:
    if row.drop == 0:
        return "as good as"
    return f"{abs(row.drop):.4f} {'better' if row.drop < 0 else 'worse'} than"
