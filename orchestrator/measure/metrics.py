"""Metrics of outputs against targets.

Every built-in metric is prepared once as a function of row weights. The metric itself is that function
at weights of 1, a bootstrap resample is the function at how often each row was drawn: no sorting and no
softmax is repeated, and two models resampled with the same weights are compared pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.imports import resolve
from orchestrator.config.measure import TASK_METRICS, Metric
from orchestrator.config.signature import Task
from orchestrator.errors import DataError, ExecutionError, ModelError

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], float]
"""Weights [N] (not negative) -> value; NaN where the weighted rows leave the metric undefined."""

SMALLER_IS_BETTER = frozenset({"nll", "mae", "rmse"})
ROW_METRICS = frozenset({"accuracy", "subset_accuracy"})
"""Shares of rows that are right: their intervals and tests are those of proportions."""


def log_softmax(logits: npt.ArrayLike) -> Floats:
    """Log-probabilities [N, K] in float64; exact for logits of any size."""
    values = np.asarray(logits, dtype=np.float64)
    shifted = values - values.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def log_sigmoid(logits: npt.ArrayLike) -> Floats:
    """Log-probabilities of two-class logits in float64; exact for logits of any size."""
    return np.asarray(-np.logaddexp(0.0, -np.asarray(logits, dtype=np.float64)))


def softmax(logits: npt.ArrayLike) -> Floats:
    """Probabilities [N, K] in float64."""
    return np.asarray(np.exp(log_softmax(logits)))


def larger_is_better(metric: Metric) -> bool:
    """Direction of a metric; a user's own is defined as larger is better."""
    return metric.name not in SMALLER_IS_BETTER


def score(
    metric: Metric, outputs: npt.ArrayLike, targets: npt.ArrayLike, *, allowed: Collection[str] = ()
) -> float:
    """The metric's own value (an error metric is not negated).

    Args:
        metric: Which metric.
        outputs: Logits or log-probabilities [N, K], log-odds of labels [N, K], or regression values [N, T].
        targets: Classes [N], labels 0 or 1 as integers [N, K], or values [N, T] ([N] for one target).
        allowed: Import paths that the metric may come from.

    Raises:
        DataError: shapes do not fit, a label is out of range, or the metric is undefined on these rows.
        ExecutionError: the outputs are not finite.
        ModelError: the metric's import path is not allowed or cannot be imported.
    """
    rows = len(np.asarray(targets))
    value = statistic(metric, outputs, targets, allowed=allowed)(np.ones(rows))
    if not np.isfinite(value):
        raise undefined(metric, rows, value)
    return value


def undefined(metric: Metric, rows: int, value: float) -> DataError:
    """The error for a metric, or a difference of two, that is not finite on so many rows."""
    needs = ""
    if metric.name in ("auroc", "recall_at_precision"):
        needs = "it needs rows of at least two classes"
    elif metric.name in ("macro_f1", "micro_f1", "mean_average_precision"):
        needs = "it needs rows that have a label"
    return DataError(f"{metric.name} is undefined on these {rows} rows", value, needs)


def statistic(
    metric: Metric, outputs: npt.ArrayLike, targets: npt.ArrayLike, *, allowed: Collection[str] = ()
) -> Statistic:
    """The metric on fixed rows as a function of row weights; arguments and errors as for `score`."""
    found = task_of(np.asarray(targets))
    tasks = [task for task, names in TASK_METRICS.items() if metric.name in names]
    # A user's own metric may be of any task.
    task = found if found in tasks or not tasks else tasks[0]
    values, truth = checked(outputs, targets, task)
    if metric.name == "recall_at_precision":
        return _recall_at_precision(values, truth, metric.precision)
    if tasks:
        return _PREPARE[task][metric.name](values, truth)
    return _custom(metric.name, resolve(metric.name, allowed), np.asarray(outputs), np.asarray(targets))


def task_of(targets: npt.NDArray[Any]) -> Task:
    """Classes are integers [N], labels integers [N, K]; all else are values."""
    if not np.issubdtype(targets.dtype, np.integer):
        return "regression"
    return "classification" if targets.ndim == 1 else "multilabel"


def checked(outputs: npt.ArrayLike, targets: npt.ArrayLike, task: Task) -> tuple[Floats, npt.NDArray[Any]]:
    """Outputs as float64 [N, K] and targets as int64 [N] or [N, K], or float64 [N, T].

    Raises:
        DataError: shapes do not fit, there are no rows, or a label is out of range.
        ExecutionError: the outputs are not finite.
    """
    values, truth = np.asarray(outputs, dtype=np.float64), np.asarray(targets)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or not len(values) or len(values) != len(truth):
        raise DataError(
            "outputs and targets do not fit",
            f"{list(values.shape)} and {list(truth.shape)}",
            "use equal rows",
        )
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise ExecutionError(
            "the model's outputs are not finite, first in row", row, "lower the learning rate or use fp32"
        )
    if task == "classification":
        return values, _classes(truth, values.shape[1])
    truth = truth.astype(np.float64).reshape(len(truth), -1)
    if truth.shape != values.shape:
        raise DataError(
            "outputs and targets do not fit",
            f"{list(values.shape)} and {list(truth.shape)}",
            "use one output a target",
        )
    if task == "regression":
        return values, truth
    if not np.isin(truth, (0, 1)).all():
        raise DataError("label out of range", truth[~np.isin(truth, (0, 1))][0], "each must be 0 or 1")
    return values, truth.astype(np.int64)


def _classes(truth: npt.NDArray[Any], classes: int) -> npt.NDArray[np.int64]:
    if task_of(truth) != "classification":
        raise DataError(
            "a classification metric needs integer labels [N]", f"{truth.dtype} {list(truth.shape)}"
        )
    if truth.min() < 0 or truth.max() >= classes:
        wrong = truth.min() if truth.min() < 0 else truth.max()
        raise DataError("label out of range", wrong, f"labels must be 0 to {classes - 1}")
    return truth.astype(np.int64)


def _mean(row_values: Floats) -> Statistic:
    return lambda weights: float(row_values @ weights / weights.sum())


def _accuracy(values: Floats, truth: npt.NDArray[Any]) -> Statistic:
    return _mean((values.argmax(axis=1) == truth).astype(np.float64))


def _nll(values: Floats, truth: npt.NDArray[Any]) -> Statistic:
    return _mean(-log_softmax(values)[np.arange(len(truth)), truth])


def _mae(values: Floats, truth: npt.NDArray[Any]) -> Statistic:
    return _mean(np.abs(values - truth).mean(axis=1))


def _rmse(values: Floats, truth: npt.NDArray[Any]) -> Statistic:
    mean_square = _mean(np.square(values - truth).mean(axis=1))
    return lambda weights: float(np.sqrt(mean_square(weights)))


def _macro_f1(values: Floats, truth: npt.NDArray[Any]) -> Statistic:
    """Mean F1 over the classes that occur as label or prediction."""
    predicted, classes = values.argmax(axis=1), values.shape[1]
    hits = predicted == truth

    def value(weights: Floats) -> float:
        right = np.bincount(truth[hits], weights[hits], minlength=classes)
        counts = np.bincount(truth, weights, minlength=classes) + np.bincount(
            predicted, weights, minlength=classes
        )
        occurs = counts > 0
        return float((2 * right[occurs] / counts[occurs]).mean())

    return value


def _one_vs_rest(values: Floats, truth: npt.NDArray[Any]) -> list[tuple[Floats, npt.NDArray[np.bool_]]]:
    """(score [N], is positive [N]) a class; two classes have one such problem, with class 1 positive.

    The score is the log-odds of the class, which orders rows like its probability but does not
    saturate: probabilities that round to 1.0 would be ties.
    """
    classes = values.shape[1]
    if classes == 2:
        return [(values[:, 1] - values[:, 0], truth == 1)]
    problems = []
    for label in range(classes):
        others = np.delete(values, label, axis=1)
        top = others.max(axis=1)
        rest = top + np.log(np.exp(others - top[:, None]).sum(axis=1))
        problems.append((values[:, label] - rest, truth == label))
    return problems


def _ranked(scores: Floats, positive: npt.NDArray[np.bool_]) -> Callable[[Floats], tuple[Floats, Floats]]:
    """Weights -> (positive, negative) weight at each distinct score, rising."""
    distinct, group = np.unique(scores, return_inverse=True)
    count = len(distinct)

    def masses(weights: Floats) -> tuple[Floats, Floats]:
        positives = np.bincount(group, weights * positive, minlength=count)
        negatives = np.bincount(group, weights * ~positive, minlength=count)
        return positives.astype(np.float64), negatives.astype(np.float64)

    return masses


def _macro(parts: list[Statistic]) -> Statistic:
    """Mean over the one-vs-rest problems that are defined; NaN when none is."""

    def value(weights: Floats) -> float:
        found = np.array([part(weights) for part in parts])
        known = found[~np.isnan(found)]
        return float(known.mean()) if len(known) else float("nan")

    return value


def _auroc(values: Floats, truth: npt.NDArray[Any]) -> Statistic:
    """Chance that a positive row scores above a negative one, ties half (Mann-Whitney); macro one-vs-rest."""

    def one(scores: Floats, positive: npt.NDArray[np.bool_]) -> Statistic:
        masses = _ranked(scores, positive)

        def value(weights: Floats) -> float:
            positives, negatives = masses(weights)
            pairs = positives.sum() * negatives.sum()
            below = np.cumsum(negatives) - negatives
            return float(positives @ (below + negatives / 2) / pairs) if pairs > 0 else float("nan")

        return value

    return _macro([one(*problem) for problem in _one_vs_rest(values, truth)])


def _recall_at_precision(values: Floats, truth: npt.NDArray[Any], precision: float) -> Statistic:
    """Largest recall over score cut-offs with at least this precision, 0 if none; macro one-vs-rest."""

    def one(scores: Floats, positive: npt.NDArray[np.bool_]) -> Statistic:
        masses = _ranked(scores, positive)

        def value(weights: Floats) -> float:
            positives, negatives = masses(weights)
            hits, alarms = np.cumsum(positives[::-1]), np.cumsum((positives + negatives)[::-1])
            total = hits[-1]
            if total <= 0:
                return float("nan")
            reached = hits[(alarms > 0) & (hits >= precision * alarms * (1 - 1e-12))]
            return float(reached.max() / total) if len(reached) else 0.0

        return value

    return _macro([one(*problem) for problem in _one_vs_rest(values, truth)])


def _label_counts(values: Floats, truth: npt.NDArray[Any]) -> Callable[[Floats], tuple[Floats, Floats]]:
    """Weights -> of each label [K] the hits, and what is there plus what was said to be."""
    said = (values > 0).astype(np.float64)
    hits, there = said * truth, said + truth
    return lambda weights: (weights @ hits, weights @ there)


def _label_macro_f1(values: Floats, truth: npt.NDArray[Any]) -> Statistic:
    """Mean F1 over the labels that occur in the truth or in an answer."""
    counts = _label_counts(values, truth)

    def value(weights: Floats) -> float:
        hits, there = counts(weights)
        occurs = there > 0
        return float((2 * hits[occurs] / there[occurs]).mean()) if occurs.any() else float("nan")

    return value


def _label_micro_f1(values: Floats, truth: npt.NDArray[Any]) -> Statistic:
    """F1 over all labels of all rows together."""
    counts = _label_counts(values, truth)

    def value(weights: Floats) -> float:
        hits, there = counts(weights)
        return float(2 * hits.sum() / there.sum()) if there.sum() > 0 else float("nan")

    return value


def _mean_average_precision(values: Floats, truth: npt.NDArray[Any]) -> Statistic:
    """Mean over labels of the precision at each positive row, in falling order of the score; equal scores
    stand at one place. Labels without a positive row are left out."""

    def one(scores: Floats, positive: npt.NDArray[np.bool_]) -> Statistic:
        masses = _ranked(scores, positive)

        def value(weights: Floats) -> float:
            positives, negatives = (found[::-1] for found in masses(weights))
            hits, alarms = np.cumsum(positives), np.cumsum(positives + negatives)
            if not len(hits) or hits[-1] <= 0:
                return float("nan")
            return float((positives * hits / np.maximum(alarms, 1e-300)).sum() / hits[-1])

        return value

    return _macro([one(*pair) for pair in zip(values.T, truth.T == 1, strict=True)])


def _subset_accuracy(values: Floats, truth: npt.NDArray[Any]) -> Statistic:
    """Share of rows that are right in every label."""
    return _mean(((values > 0) == truth).all(axis=1).astype(np.float64))


def _label_nll(values: Floats, truth: npt.NDArray[Any]) -> Statistic:
    """Mean over labels, in nats."""
    return _mean(-log_sigmoid(np.where(truth == 1, values, -values)).mean(axis=1))


_PREPARE: dict[Task, dict[str, Callable[[Floats, npt.NDArray[Any]], Statistic]]] = {
    "classification": {"accuracy": _accuracy, "macro_f1": _macro_f1, "auroc": _auroc, "nll": _nll},
    "multilabel": {
        "macro_f1": _label_macro_f1,
        "micro_f1": _label_micro_f1,
        "mean_average_precision": _mean_average_precision,
        "subset_accuracy": _subset_accuracy,
        "nll": _label_nll,
    },
    "regression": {"mae": _mae, "rmse": _rmse},
}


def _custom(
    name: str, function: Callable[..., Any], outputs: npt.NDArray[Any], targets: npt.NDArray[Any]
) -> Statistic:
    """A user's metric knows no weights: rows are repeated as often as they were drawn."""

    def value(weights: Floats) -> float:
        rows = np.repeat(np.arange(len(targets)), weights.astype(np.int64))
        try:
            return float(function(outputs[rows], targets[rows]))
        except Exception as error:
            raise ModelError(
                f"the metric failed ({error.__class__.__name__}: {error})",
                name,
                "it gets outputs and targets, also of resampled rows: return float('nan') where these leave "
                "it undefined",
            ) from error

    return value
