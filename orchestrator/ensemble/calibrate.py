"""Confidence that can be relied on: members' before they are mixed, and an ensemble's after that.

Members trained with other losses (label smoothing, distillation) are sure to different degrees. Their mean
then follows whoever is surest, and weights of least negative log-likelihood prefer a worse but better
calibrated member. A temperature each brings them to one scale. The mean of calibrated members is less sure
than it could be, hence a second calibration of the mixed answer (Rahaman and Thiery 2021,
https://arxiv.org/abs/2007.08792).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression, minimize

from orchestrator.config.calibration import (
    AutoScaling,
    IsotonicScaling,
    Scaling,
    TemperatureScaling,
    VectorScaling,
)
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats, Rows
from orchestrator.ensemble.folds import cross_validated
from orchestrator.errors import EnsembleError
from orchestrator.measure.metrics import log_softmax
from orchestrator.measure.tasks import class_rules

RANGE = (0.1, 10.0)
"""Temperatures, and factors of a class, that are considered."""
DECIMALS = 6
MOST_KNOTS = 50
RISE = 1e-3
"""Slope of an isotonic function beyond its last knot: a tie there would lose the order of classes."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 40
COARSE = 18
"""Steps to within 0.1 % of the best temperature: enough where hundreds are fitted."""


_LARGEST_STEP = 0.5


def left_out_steps(
    scaled: npt.NDArray[np.float32],
    chances: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int64],
    temperature: float,
    kept: Sequence[npt.NDArray[np.bool_]],
) -> list[float]:
    """How far the log of the temperature is from its optimum on some of the rows, for each such choice.

    To first order, of the likelihood and the prior of `fit_temperature`: one Newton step.

    Args:
        scaled: Logits [N, K] over the temperature.
        chances: Their softmax.
        targets: Labels [N].
        temperature: The optimum on all rows.
        kept: Masks [N] of the rows.
    """
    mean = (chances * scaled).sum(axis=1)
    spread = (chances * np.square(scaled)).sum(axis=1) - np.square(mean)
    slope = mean - scaled[np.arange(len(targets)), targets]
    found = []
    for others in kept:
        prior = 2 / others.sum()
        step = (slope[others].mean() - prior * math.log(temperature)) / (spread[others].mean() + prior)
        found.append(float(np.clip(step, -_LARGEST_STEP, _LARGEST_STEP)))
    return found


def fit_temperature(
    logits: npt.NDArray[np.floating[Any]],
    targets: npt.NDArray[np.int64],
    then: Callable[[npt.NDArray[np.floating[Any]]], Floats] = log_softmax,
    steps: int = _STEPS,
) -> float:
    """The temperature T of least negative log-likelihood of `then`(logits / T), by default their softmax.

    Guo et al. 2017 (https://arxiv.org/abs/1706.04599), section 4.2. A prior worth about one row keeps T
    finite where every row is right: log(T)^2 / N is added to the mean. Found by golden-section search over
    log T, so it depends on the inputs alone.

    Args:
        logits: [N, K].
        targets: Labels [N].
        then: Makes log-probabilities [N, K] of the divided logits.
        steps: Each cuts the interval of possible temperatures to 0.62 of what it was.
    """
    rows = np.arange(len(targets))

    def loss(log_temperature: float) -> float:
        likelihood = then(logits / math.exp(log_temperature))[rows, targets].mean()
        return float(log_temperature**2 / len(targets) - likelihood)

    low, high = (math.log(end) for end in RANGE)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(steps):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = loss(right)
    return round(math.exp((low + high) / 2), DECIMALS)


def calibrated(scaling: Scaling, scores: Floats, task: Task = "classification") -> Floats:
    """An ensemble's scores [N, K], calibrated; of labels all by the same function.

    Raises:
        EnsembleError: the calibration is not fitted.
    """
    if not scaling.fitted:
        raise EnsembleError("the ensemble is not calibrated", scaling.kind, "fit the ensemble first")
    kind = class_rules(task)
    return kind.from_classes(_apply(scaling, kind.as_classes(scores)), scores.shape)


def fit_scaling(
    scaling: Scaling, scores: Floats, targets: npt.NDArray[Any], task: Task = "classification"
) -> Scaling:
    """The calibration fitted to scores [N, K] and their targets; one that is fitted is kept."""
    kind = class_rules(task)
    return scaling if scaling.fitted else _fit(scaling, kind.as_classes(scores), kind.classes(targets))


@singledispatch
def _apply(scaling: Scaling, scores: Floats) -> Floats:
    raise EnsembleError(f"no calibration by {type(scaling).__name__} ({len(scores)} rows)")


@singledispatch
def _fit(scaling: Scaling, scores: Floats, targets: npt.NDArray[np.int64]) -> Scaling:
    raise EnsembleError(f"no fit for {type(scaling).__name__} ({len(scores)} rows, {len(targets)} labels)")


@_apply.register
def _by_temperature(scaling: TemperatureScaling, scores: Floats) -> Floats:
    return log_softmax(scores / np.float64(scaling.temperature))


@_fit.register
def _fit_temperature(_: TemperatureScaling, scores: Floats, targets: npt.NDArray[np.int64]) -> Scaling:
    return TemperatureScaling(temperature=fit_temperature(scores, targets))


@_apply.register
def _by_vector(scaling: VectorScaling, scores: Floats) -> Floats:
    return log_softmax(scores * np.asarray(scaling.factors) + np.asarray(scaling.shifts))


@_fit.register
def _fit_vector(_: VectorScaling, scores: Floats, targets: npt.NDArray[np.int64]) -> Scaling:
    """Least negative log-likelihood, with a prior worth one row around factors of 1 and shifts of 0."""
    rows, classes = scores.shape
    truth = np.eye(classes)[targets]
    start = np.concatenate([np.ones(classes), np.zeros(classes)])

    def loss(numbers: Floats) -> tuple[float, Floats]:
        factors, shifts = numbers[:classes], numbers[classes:]
        found = log_softmax(scores * factors + shifts)
        error = (np.exp(found) - truth) / rows
        slope = np.concatenate([(error * scores).sum(axis=0), error.sum(axis=0)])
        away = numbers - start
        return float(-(found * truth).sum() / rows + away @ away / rows), slope + 2 * away / rows

    bounds = [RANGE] * classes + [(None, None)] * classes
    found = np.round(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x, DECIMALS)
    return VectorScaling(factors=tuple(found[:classes].tolist()), shifts=tuple(found[classes:].tolist()))


@_apply.register
def _by_isotonic(scaling: IsotonicScaling, scores: Floats) -> Floats:
    before, after = np.array(scaling.knots).T
    end = after[-1] + RISE * (1 - before[-1])
    inner = np.log(np.interp(np.exp(scores), np.append(before, 1.0), np.append(after, end)))
    # Below the first knot a straight line to (0, 0), in logarithms: no probability becomes 0.
    below = scores + np.log(after[0] / before[0])
    return log_softmax(np.where(scores < np.log(before[0]), below, inner))


@_fit.register
def _fit_isotonic(_: IsotonicScaling, scores: Floats, targets: npt.NDArray[np.int64]) -> Scaling:
    """Least squares over all classes' probabilities together; neighbouring steps are joined until each
    knot stands for 2 % of the rows' true classes, so that no knot follows a handful of rows."""
    rows, classes = scores.shape
    least = np.finfo(float).tiny
    chances, group, counts = np.unique(
        np.maximum(np.exp(scores), least), return_inverse=True, return_counts=True
    )
    hits = np.bincount(group.ravel(), np.eye(classes)[targets].ravel(), minlength=len(chances))
    steps = isotonic_regression(hits / counts, weights=counts).blocks
    sums = [np.add.reduceat(values, steps[:-1]) for values in (counts, chances * counts, hits)]
    filled = np.floor(np.cumsum(sums[2]) * MOST_KNOTS / (rows * (1 + 1e-9))).astype(int)
    starts = np.flatnonzero(np.concatenate([[True], np.diff(filled[:-1]) > 0]))
    total, before, right = (np.add.reduceat(values, starts) for values in sums)
    # Shares of 0 and 1 say that there were few rows, not that it cannot be.
    after = np.clip(right / total, 0.5 / scores.size, 1 - 0.5 / scores.size)
    # Means of probabilities that differ by rounding may be equal.
    knots = np.stack([before / total, after])
    rises = (np.diff(np.maximum.accumulate(knots, axis=1), prepend=-1.0) > 0).all(axis=0)
    return IsotonicScaling(knots=tuple((before, after) for before, after in knots[:, rises].T.tolist()))


@_fit.register
def _fit_auto(_: AutoScaling, scores: Floats, targets: npt.NDArray[np.int64]) -> Scaling:
    rows = len(targets)

    def loss(scaling: Scaling) -> float:
        def held_out(seen: Rows, others: Rows) -> Floats:
            return calibrated(fit_scaling(scaling, scores[seen], targets[seen]), scores[others])

        return -float(cross_validated(rows, held_out)[np.arange(rows), targets].sum())

    candidates: tuple[Scaling, ...] = (TemperatureScaling(), VectorScaling(), IsotonicScaling())
    best = min(candidates, key=loss) if rows > 1 else candidates[0]
    return fit_scaling(best, scores, targets)
