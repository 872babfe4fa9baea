"""The promise: a variant is not worse than its parent by more than `max_drop`, shown on paired rows.

A one-sided non-inferiority test: the promise holds when the upper confidence bound of the drop is at
most `max_drop`. Finding no significant difference is not enough; too few rows cannot keep a promise, and
the verdict then says how many would do. A loss (`nll`, `mae`, `rmse`) has no upper limit, so for it no number
of rows rules out rare rows that lose much: its bound speaks of rows like those seen, and the verdict says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from orchestrator.config.measure import BuiltInMetric, Metric
from orchestrator.config.search import Promise
from orchestrator.errors import ConfigError, DataError
from orchestrator.measure.intervals import resamples, tango_upper_drop, upper_bound, wilson
from orchestrator.measure.metrics import (
    ROW_METRICS,
    SMALLER_IS_BETTER,
    checked,
    larger_is_better,
    statistic,
    task_of,
    undefined,
)
from orchestrator.measure.tasks import kind_of

FLOORED = ("macro_f1", "micro_f1", "recall_at_precision", "auroc", "mean_average_precision")
"""Metrics whose bound has a floor on few rows."""
OWN_TEST = "paired bootstrap (no floor for few rows is known of a metric of your own)"
LOSS_TEST = "paired bootstrap (a loss has no upper limit: rows unlike these are not covered)"
RESAMPLES = 2000
MOST_ROWS = 2**20
"""Times the rows at hand: more than that is no advice."""

Status = Literal["holds", "fails", "cannot be told"]
SAID: Mapping[str, str] = {
    "holds": "the promise holds",
    "fails": "the promise does not hold",
    "cannot be told": "it cannot be told whether the promise holds",
}
"""A status as part of a sentence."""


@dataclass(frozen=True)
class Verdict:
    """Outcome of one look at the contract part. A drop is positive when the variant is worse."""

    status: Status
    """`fails`: a drop is larger than allowed already as observed, so that more rows would not help;
    `cannot be told`: it is within, but not shown to be with so few rows."""
    drop: float
    """Observed, in the metric's unit."""
    bound: float
    """One-sided upper confidence bound of the drop."""
    rows: int
    max_drop: float
    confidence: float
    test: str
    reason: str
    needed_rows: int | None = None
    """About how many rows would show it, where it cannot be told."""
    changed: float | None = None
    """Share of rows whose class, or whose labels, the variant answers otherwise than its parent; None for
    regression."""
    changed_bound: float | None = None
    """Its one-sided upper confidence bound (Wilson)."""
    worst_class: dict[str, Any] | None = None
    """The class or label that loses most, one that breaks `max_class_drop` first: `label`, `drop` and `bound`
    of its recall, `rows`. The bound holds for all classes at once (Bonferroni)."""
    class_drop: float | None = None
    """Largest observed drop of the recall of any class or label; None for regression."""

    @property
    def holds(self) -> bool:
        """Whether the promise was shown to be kept."""
        return self.status == "holds"

    def plain(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"holds": self.holds, **asdict(self)}


@dataclass(frozen=True)
class _Clause:
    """One thing that was promised to stay below a bound."""

    name: str
    value: float
    bound: float
    allowed: float
    rows: int
    """That tell: of the whole part, or of one class."""
    bound_at: Callable[[float], float]
    """The bound if there were so many times as many rows like these."""
    part_rows: int
    """Of the whole part."""
    unlimited: bool = False
    """Whether one row that was not seen could cost any amount."""
    others: tuple[_Clause, ...] = ()
    """The same of other classes, which cannot be told either."""

    @property
    def status(self) -> Status:
        if self.bound <= self.allowed:
            return "holds"
        return "fails" if self.value >= self.allowed else "cannot be told"

    @cached_property
    def needed_rows(self) -> int | None:
        if self.status != "cannot be told" or not self._told_at(MOST_ROWS):
            return None
        low, high = 1.0, float(MOST_ROWS)
        while high / low > 1.001:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self._told_at(middle) else (middle, high)
        return math.ceil(self.part_rows * high)

    def _told_at(self, times: float) -> bool:
        return all(clause.bound_at(times) <= clause.allowed for clause in (self, *self.others))


def non_inferior(
    metric: Metric,
    variant_outputs: npt.ArrayLike,
    parent_outputs: npt.ArrayLike,
    targets: npt.ArrayLike,
    promise: Promise,
    *,
    seed: int = 0,
    allowed: Collection[str] = (),
) -> Verdict:
    """Test the promise on paired rows.

    A share of right rows: the score interval of the difference of paired proportions (Tango 1998,
    Statistics in Medicine 17:891-908), which stays sound when few or no rows differ. Other metrics: the
    percentile bootstrap of the paired difference; for metrics of counts and ranks (`FLOORED`) it is widened
    to what no difference at all on so few rows could show. Every bound of the promise must hold; needing all
    of them takes no correction for their number (intersection-union test, Berger 1982).

    Args:
        metric: What was promised.
        variant_outputs: [N, K] of the variant, in its execution.
        parent_outputs: [N, K] of the parent on the same rows.
        targets: Labels [N] or values [N, T].
        promise: Allowed drop and confidence.
        seed: Of the bootstrap.
        allowed: Import paths that the metric may come from.

    Raises:
        DataError: the rows have no label, or leave the metric of one of the two undefined or infinite.
    """
    truth = np.asarray(targets)
    if task_of(truth) == "multilabel" and not truth.any():
        raise DataError("no row has a label", f"{len(truth)} rows", "use rows that have some")
    clause, test = _drop_clause(metric, variant_outputs, parent_outputs, targets, promise, seed, allowed)
    clauses = [clause]
    facts: dict[str, Any] = {}
    if task_of(truth) != "regression":
        changed = _changed(variant_outputs, parent_outputs, targets, promise)
        worst_class, worst, most = _worst_class(variant_outputs, parent_outputs, targets, promise)
        facts = {"changed": changed.value, "changed_bound": changed.bound}
        facts |= {"worst_class": worst_class, "class_drop": most}
        clauses += [found for found in (changed, worst) if found.allowed < math.inf]
    elif promise.max_changed is not None or promise.max_class_drop is not None:
        raise ConfigError("max_changed and max_class_drop need classes", metric.name, "remove them")
    status = _status(clauses)
    needed = [found.needed_rows for found in clauses if found.status == "cannot be told"]
    known = [rows for rows in needed if rows is not None]
    return Verdict(
        status=status,
        drop=clause.value,
        bound=clause.bound,
        rows=clause.rows,
        max_drop=promise.max_drop,
        confidence=promise.confidence,
        test=test,
        reason="; ".join(_sentence(found, promise.confidence) for found in clauses),
        needed_rows=max(known) if status == "cannot be told" and len(known) == len(needed) else None,
        **facts,
    )


def _status(clauses: Sequence[_Clause]) -> Status:
    """All must hold; one that fails decides."""
    found = {clause.status for clause in clauses}
    if "fails" in found:
        return "fails"
    return "cannot be told" if "cannot be told" in found else "holds"


def _drop_clause(
    metric: Metric,
    variant_outputs: npt.ArrayLike,
    parent_outputs: npt.ArrayLike,
    targets: npt.ArrayLike,
    promise: Promise,
    seed: int,
    allowed: Collection[str],
) -> tuple[_Clause, str]:
    """The metric's own clause, and the name of its test."""
    confidence = promise.confidence
    if metric.name in ROW_METRICS:
        variant_right, parent_right = _right(variant_outputs, targets), _right(parent_outputs, targets)
        clause = _tango_clause(
            metric.name, parent_right, variant_right, promise.max_drop, confidence, len(parent_right)
        )
        return clause, "paired score test (Tango 1998)"
    drop, bound, rows = _bootstrap_drop(
        metric, variant_outputs, parent_outputs, targets, confidence, seed, allowed
    )

    def bound_at(times: float) -> float:
        return drop + (bound - drop) / math.sqrt(times)

    unlimited = metric.name in SMALLER_IS_BETTER
    test = "paired bootstrap" if metric.name in get_args(BuiltInMetric) else OWN_TEST
    clause = _Clause(metric.label, drop, bound, promise.max_drop, rows, bound_at, rows, unlimited)
    return clause, LOSS_TEST if unlimited else test


def _sentence(clause: _Clause, confidence: float) -> str:
    at = f"{100 * confidence:.4g}%"
    said = (
        f"{clause.name} drops by {clause.value:.4f} on {clause.rows} rows and at {at} confidence "
        f"by at most {clause.bound:.4f}"
        if clause.name != CHANGED
        else f"{clause.value:.4f} of {clause.rows} answers change and at {at} confidence at most "
        f"{clause.bound:.4f}"
    )
    said += (
        f", which is {'within' if clause.status == 'holds' else 'more than'} the allowed {clause.allowed:g}"
    )
    if clause.unlimited and clause.status == "holds":
        unseen = 1 - (1 - confidence) ** (1 / clause.rows)
        said += f", unless rows unlike these lose more: up to {unseen:.2g} of all rows may be such"
    needed = clause.needed_rows
    rows = "rows" if clause.rows == clause.part_rows else "rows of all classes"
    return f"{said}; about {needed} {rows} would be needed to tell" if needed else said


CHANGED = "changed answers"


def _right(outputs: npt.ArrayLike, targets: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which rows [N] are right; of several labels, in every one."""
    kind = kind_of(targets)
    values, truth = checked(outputs, targets, kind.task)
    return kind.right(values, truth)


def _tango_clause(
    name: str,
    parent_right: npt.NDArray[np.bool_],
    variant_right: npt.NDArray[np.bool_],
    allowed: float,
    confidence: float,
    part_rows: int,
) -> _Clause:
    lost = int((parent_right & ~variant_right).sum())
    won = int((variant_right & ~parent_right).sum())
    rows = len(parent_right)

    def bound_at(times: float) -> float:
        return tango_upper_drop(lost * times, won * times, rows * times, confidence)

    return _Clause(name, (lost - won) / rows, bound_at(1), allowed, rows, bound_at, part_rows)


def changed_bound(changed: float, rows: float, confidence: float) -> float:
    """Upper bound of the share of rows that change, of which so many did."""
    # The upper end of a two-sided interval at 2c - 1 is the one-sided bound at c.
    return wilson(changed, rows, 2 * confidence - 1)[1]


def _changed(
    variant_outputs: npt.ArrayLike, parent_outputs: npt.ArrayLike, targets: npt.ArrayLike, promise: Promise
) -> _Clause:
    """The share of rows that get another class, right or wrong."""
    kind = kind_of(targets)
    variant, _ = checked(variant_outputs, targets, kind.task)
    parent, _ = checked(parent_outputs, targets, kind.task)
    rows = len(variant)
    differs = kind.decisions(variant) != kind.decisions(parent)
    changed = int(differs.reshape(rows, -1).any(axis=1).sum())

    def bound_at(times: float) -> float:
        return changed_bound(changed * times, rows * times, promise.confidence)

    allowed = math.inf if promise.max_changed is None else promise.max_changed
    return _Clause(CHANGED, changed / rows, bound_at(1), allowed, rows, bound_at, rows)


def _worst_class(
    variant_outputs: npt.ArrayLike, parent_outputs: npt.ArrayLike, targets: npt.ArrayLike, promise: Promise
) -> tuple[dict[str, Any], _Clause, float]:
    """The class or label whose recall has the largest upper bound of its drop; of those that break the
    promise, if any does: a rare class has a wide bound even where nothing is lost. And the largest drop."""
    variant_found, parent_found = _found(variant_outputs, targets), _found(parent_outputs, targets)
    confidence = 1 - (1 - promise.confidence) / len(variant_found)
    allowed = math.inf if promise.max_class_drop is None else promise.max_class_drop
    clauses = {}
    for label, after in variant_found.items():
        name = f"the recall of class {label}"
        clauses[label] = _tango_clause(
            name, parent_found[label], after, allowed, confidence, len(np.asarray(targets))
        )
    label, worst = max(
        clauses.items(),
        key=lambda found: (found[1].status == "fails", found[1].bound, found[1].value, -found[0]),
    )
    facts = {"label": label, "drop": worst.value, "bound": worst.bound, "rows": worst.rows}
    untold = (found for found in clauses.values() if found.status == "cannot be told" and found is not worst)
    return facts, replace(worst, others=tuple(untold)), max(clause.value for clause in clauses.values())


def _found(outputs: npt.ArrayLike, targets: npt.ArrayLike) -> dict[int, npt.NDArray[np.bool_]]:
    """By class or label that occurs: of the rows that have it, which are answered with it."""
    kind = kind_of(targets)
    values, truth = checked(outputs, targets, kind.task)
    if kind.task == "multilabel":
        said = kind.decisions(values)
        return {place: said[own == 1, place] for place, own in enumerate(truth.T) if own.any()}
    right = kind.right(values, truth)
    return {int(label): right[truth == label] for label in np.unique(truth)}


def _bootstrap_drop(
    metric: Metric,
    variant_outputs: npt.ArrayLike,
    parent_outputs: npt.ArrayLike,
    targets: npt.ArrayLike,
    confidence: float,
    seed: int,
    allowed: Collection[str],
) -> tuple[float, float, int]:
    variant = statistic(metric, variant_outputs, targets, allowed=allowed)
    parent = statistic(metric, parent_outputs, targets, allowed=allowed)
    sign = 1.0 if larger_is_better(metric) else -1.0
    truth = np.asarray(targets)
    rows = len(truth)

    def drop(weights: npt.NDArray[np.float64]) -> float:
        return sign * (parent(weights) - variant(weights))

    observed = drop(np.ones(rows))
    if not math.isfinite(observed):
        raise undefined(metric, rows, observed)
    bound = upper_bound([drop(weights) for weights in resamples(rows, seed, RESAMPLES)], confidence)
    if metric.name in FLOORED:
        # Resampling rows that do not differ shows no spread, however few they are.
        seen = _rows_that_tell(metric.name, truth, np.shape(variant_outputs)[-1])
        bound = max(bound, tango_upper_drop(0, 0, max(seen, 1), confidence))
    return observed, bound, rows


def _rows_that_tell(name: str, truth: npt.NDArray[Any], outputs: int) -> int:
    """How many rows such a metric is as sure as: Tango's bound at no differing row of them is its floor.

    Where each class weighs the same the rarest limits what can be seen: as if every one that occurs had its
    rows. The AUROC of two that occur is limited by the smaller; a model of two classes has one recall, of 1.
    """
    if name == "micro_f1":
        return len(truth)
    if name == "recall_at_precision" and outputs == 2:
        return int((truth == 1).sum())
    counts = np.bincount(truth) if truth.ndim == 1 else (truth == 1).sum(axis=0)
    occurring = counts[counts > 0]
    one_curve = name == "auroc" and len(occurring) == 2
    return int(occurring.min() * (1 if one_curve else len(occurring)))
