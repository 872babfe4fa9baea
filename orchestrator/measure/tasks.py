"""What depends on the task, in one place: how outputs become scores, are mixed and held against the truth.

An ensemble's scores are log-probabilities [N, K] of a classification, log-odds [N, K] of several labels, or
values [N, T] of a regression. A row of K labels is K rows of two classes: what is fitted or worked out for
classes holds for labels by `as_classes`, and `from_classes` is the way back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.signature import Task
from orchestrator.measure.metrics import Floats, log_sigmoid, log_softmax, task_of

Array = npt.NDArray[Any]


class Values:
    """Regression."""

    task: Task = "regression"

    def scores(self, outputs: Array) -> Floats:
        """Scores of a model's raw outputs, of the same shape."""
        return np.asarray(outputs, dtype=np.float64)

    def normalized(self, scores: Floats) -> Floats:
        """Scores after arithmetic on them, so that they are scores again."""
        return scores

    def mixture(self, stacked: Floats, shares: Floats) -> Floats:
        """Scores [N, K] of the mean of values or probabilities.

        Args:
            stacked: scores [M, N, K] of the members.
            shares: broadcasts to [M, N, K]; sums to 1 over the members.
        """
        return np.asarray((shares * stacked).sum(axis=0))

    def probabilities(self, scores: Floats) -> Floats | None:
        """Probabilities [N, K], or None where there are none."""
        del scores
        return None


class Classes(Values):
    """Classification: one class a row."""

    task: Task = "classification"

    def scores(self, outputs: Array) -> Floats:
        """See `Values`."""
        return log_softmax(outputs)

    def normalized(self, scores: Floats) -> Floats:
        """See `Values`."""
        return log_softmax(scores)

    def mixture(self, stacked: Floats, shares: Floats) -> Floats:
        """See `Values`: in log space, so that nothing is clipped."""
        with np.errstate(divide="ignore"):
            terms = stacked + np.log(shares)
        top = terms.max(axis=0)
        return np.asarray(top + np.log(np.exp(terms - top).sum(axis=0)))

    def probabilities(self, scores: Floats) -> Floats:
        """See `Values`: of sum 1 to rounding."""
        probs = np.exp(scores)
        return np.asarray(probs / probs.sum(axis=-1, keepdims=True))

    def decisions(self, scores: Array) -> Array:
        """Classes [..., N] of scores or logits; of labels whether each is there [..., N, K]."""
        return np.asarray(scores.argmax(axis=-1))

    def chosen(self, probs: Array, threshold: float = 0.5) -> Array:
        """`decisions` of probabilities; a label is there whose probability is above the threshold."""
        del threshold
        return np.asarray(probs.argmax(axis=-1), dtype=np.int64)

    def right(self, scores: Array, targets: Array) -> npt.NDArray[np.bool_]:
        """Which rows [..., N] are answered right; of labels, in every one."""
        return np.asarray(self.decisions(scores) == targets)

    def as_classes(self, scores: Array) -> Array:
        """Scores or logits [..., N, K] as those of rows with one class each: of labels [..., N * K, 2]."""
        return scores

    def from_classes(self, found: Floats, shape: tuple[int, ...]) -> Floats:
        """The way back, to scores of this shape."""
        del shape
        return found

    def classes(self, targets: Array) -> npt.NDArray[np.int64]:
        """Targets of the rows of `as_classes`."""
        return targets

    def by_row(self, values: Array, rows: int) -> Array:
        """Values [..., N * K] of the rows of `as_classes` as [..., N, K]; of classes K is 1."""
        del rows
        return values[..., None]

    def likelihoods(self, scores: Floats, targets: Array) -> Floats:
        """Log-probability of the truth, of each of the rows of `as_classes`."""
        found, labels = self.as_classes(scores), self.classes(targets)
        return np.asarray(found[np.arange(len(labels)), labels])

    def losses(self, scores: Floats, targets: Array) -> Floats:
        """Negative log-likelihood [N] of each row in nats; of labels their mean."""
        return np.asarray(-self.by_row(self.likelihoods(scores, targets), len(targets)).mean(axis=-1))


class Labels(Classes):
    """Several labels a row, each there or not: scores are log-odds, targets 0 or 1 [N, K]."""

    task: Task = "multilabel"

    def scores(self, outputs: Array) -> Floats:
        """See `Values`: a logit is log-odds."""
        return np.asarray(outputs, dtype=np.float64)

    def normalized(self, scores: Floats) -> Floats:
        """See `Values`."""
        return scores

    def mixture(self, stacked: Floats, shares: Floats) -> Floats:
        """See `Values`."""
        there = super().mixture(log_sigmoid(stacked), shares)
        return np.asarray(there - super().mixture(log_sigmoid(-stacked), shares))

    def probabilities(self, scores: Floats) -> Floats:
        """See `Values`: of each label by itself."""
        return np.exp(log_sigmoid(scores))

    def decisions(self, scores: Array) -> Array:
        """See `Classes`: labels more probable than not."""
        return np.asarray(scores > 0)

    def chosen(self, probs: Array, threshold: float = 0.5) -> Array:
        """See `Classes`."""
        return np.asarray(probs > threshold)

    def right(self, scores: Array, targets: Array) -> npt.NDArray[np.bool_]:
        """See `Classes`."""
        return np.asarray((self.decisions(scores) == targets).all(axis=-1))

    def as_classes(self, scores: Array) -> Floats:
        """See `Classes`: the label is not there, or is."""
        odds = scores.reshape(*scores.shape[:-2], -1)
        return np.stack([log_sigmoid(-odds), log_sigmoid(odds)], axis=-1)

    def from_classes(self, found: Floats, shape: tuple[int, ...]) -> Floats:
        """See `Classes`."""
        return np.asarray(found[..., 1] - found[..., 0]).reshape(shape)

    def by_row(self, values: Array, rows: int) -> Array:
        """See `Classes`."""
        return values.reshape(*values.shape[:-1], rows, values.shape[-1] // max(rows, 1))

    def classes(self, targets: Array) -> npt.NDArray[np.int64]:
        """See `Classes`."""
        return targets.astype(np.int64).ravel()


_CLASSES, _LABELS = Classes(), Labels()
_RULES: dict[Task, Values] = {"classification": _CLASSES, "multilabel": _LABELS, "regression": Values()}


def rules(task: Task) -> Values:
    """What depends on this task."""
    return _RULES[task]


def kind_of(targets: npt.ArrayLike) -> Classes:
    """The rules of several labels a row, or of classes, which refuse values."""
    return _LABELS if task_of(np.asarray(targets)) == "multilabel" else _CLASSES


def class_rules(task: Task) -> Classes:
    """The same of a task whose answers are probable: not of a regression."""
    found = rules(task)
    assert isinstance(found, Classes), task
    return found
