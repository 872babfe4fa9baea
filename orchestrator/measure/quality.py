"""How good outputs are: the metric, accuracy, likelihood and calibration, with intervals."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.measure import Metric
from orchestrator.measure.intervals import Interval, percentile_interval, resamples, wilson
from orchestrator.measure.metrics import ROW_METRICS, checked, score, softmax, statistic, task_of
from orchestrator.measure.tasks import kind_of

BINS = 15


@dataclass(frozen=True)
class Quality:
    """Figures of one model on one part; the last four are None for regression, of several labels the
    accuracy is (`subset_accuracy` is a metric)."""

    name: str
    """The metric's."""
    value: float
    ci: Interval
    """95 %: Wilson's interval for a share of right rows, else the seeded percentile bootstrap's."""
    accuracy: float | None
    accuracy_ci: Interval | None
    nll: float | None
    ece: float | None

    def plain(self) -> dict[str, Any]:
        """The keys that the run summary and the records hold."""
        return {
            "metric": {"name": self.name, "value": self.value, "ci": list(self.ci)},
            "accuracy": self.accuracy,
            "accuracy_ci": None if self.accuracy_ci is None else list(self.accuracy_ci),
            "nll": self.nll,
            "ece": self.ece,
        }


def quality(
    metric: Metric,
    outputs: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    seed: int = 0,
    allowed: Collection[str] = (),
) -> Quality:
    """Measure outputs against targets; arguments and errors as for `score`."""
    truth = np.asarray(targets)
    value = score(metric, outputs, truth, allowed=allowed)
    ci = _interval(metric, outputs, truth, value, seed, allowed)
    task = task_of(truth)
    if task == "regression":
        return Quality(metric.name, value, ci, None, None, None, None)
    nll, ece = score(Metric(name="nll"), outputs, truth), expected_calibration_error(outputs, truth)
    if task == "multilabel":
        return Quality(metric.name, value, ci, None, None, nll, ece)
    accuracy = score(Metric(name="accuracy"), outputs, truth)
    return Quality(metric.name, value, ci, accuracy, wilson(accuracy * len(truth), len(truth)), nll, ece)


def expected_calibration_error(outputs: npt.ArrayLike, targets: npt.ArrayLike, bins: int = BINS) -> float:
    """Mean gap between top probability and accuracy over equal-width bins, weighted by rows.

    Bins are (low, high] over the top probability (Guo et al. 2017, https://arxiv.org/abs/1706.04599). Each
    of several labels counts as a row of two classes.
    """
    probs, truth = _chances(outputs, targets)
    top, right = probs.max(axis=1), probs.argmax(axis=1) == truth
    # Rounding can leave a top probability a hair above 1.
    place = np.clip(np.ceil(top * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, right - top, minlength=bins)
    return float(np.abs(gaps).sum() / len(truth))


def brier_score(outputs: npt.ArrayLike, targets: npt.ArrayLike) -> float:
    """Mean squared distance of the probabilities from the truth, summed over the classes: 0 to 2.

    The form of Brier 1950 for several classes; arguments and errors as for `score`. Each of several labels
    counts as a row of two classes.
    """
    errors, truth = _chances(outputs, targets)
    errors[np.arange(len(truth)), truth] -= 1
    return float(np.square(errors).sum(axis=1).mean())


def _chances(
    outputs: npt.ArrayLike, targets: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Probabilities [N, K] and classes [N]; of several labels [N * K, 2] and [N * K]."""
    kind = kind_of(targets)
    values, truth = checked(outputs, targets, kind.task)
    return softmax(kind.as_classes(kind.scores(values))), kind.classes(truth)


def _interval(
    metric: Metric,
    outputs: npt.ArrayLike,
    truth: npt.NDArray[Any],
    value: float,
    seed: int,
    allowed: Collection[str],
) -> Interval:
    rows = len(truth)
    if metric.name in ROW_METRICS:
        return wilson(value * rows, rows)
    at = statistic(metric, outputs, truth, allowed=allowed)
    return percentile_interval([at(weights) for weights in resamples(rows, seed)])
