"""Answers with a stated chance to be right: sets of classes, and intervals around values.

Split conformal prediction (Vovk et al. 2005; Angelopoulos and Bates 2021, https://arxiv.org/abs/2107.07511):
on calibration rows that nothing was fitted on, a score says how ill the truth fits the answer. What fits no
worse than all but a small share of them is let in. For rows drawn like the calibration rows the truth is in
with at least the chosen probability, whatever the model; the promise is an average over rows.

An ensemble's settings are at its root: `fit_root` fills them in, `sets_of` and `ends_of` apply them to what a
walk over the tree gave.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.calibration import Band, PredictionSets
from orchestrator.config.ensemble import Combined, Ensemble, Node
from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.tree import Prediction
from orchestrator.errors import EnsembleError

Mask = npt.NDArray[np.bool_]
Probs = npt.NDArray[np.floating[Any]]


def fit_root(tree: Ensemble, found: Prediction, targets: npt.NDArray[Any]) -> Ensemble:
    """The tree with its prediction sets or intervals fitted, if it asks for any.

    Args:
        tree: A fitted tree.
        found: Its answers on the calibration rows.
        targets: Their labels [N] or values [N, T].

    Raises:
        EnsembleError: too few rows for the coverage.
    """
    changed: dict[str, Any] = {}
    if tree.prediction_sets is not None and found.probs is not None:
        changed["prediction_sets"] = fit_sets(tree.prediction_sets, found.probs, targets)
    if tree.intervals is not None:
        changed["intervals"] = fit_band(tree.intervals, found.outputs, targets)
    return tree.model_copy(update=changed)


def sets_of(tree: Node, probs: Probs) -> Mask | None:
    """Which classes are in each row's set [N, K], for a fitted tree's probabilities [N, K]; None where the
    tree has no prediction sets. The promise is that of the complete tree, not of one that misses members."""
    settings = tree.prediction_sets if isinstance(tree, Combined) else None
    return None if settings is None else prediction_sets(settings, probs)


def ends_of(tree: Node, values: Probs) -> tuple[Floats, Floats] | None:
    """Lower and upper ends [N, T] around a fitted tree's values [N, T]; None where it has no intervals."""
    settings = tree.intervals if isinstance(tree, Combined) else None
    return None if settings is None else intervals(settings, values)


def fit_sets(settings: PredictionSets, probs: Probs, targets: npt.NDArray[np.int64]) -> PredictionSets:
    """The settings with the threshold fitted.

    Args:
        settings: Method and coverage.
        probs: An ensemble's probabilities [N, K] on the calibration rows.
        targets: Their labels [N].

    Raises:
        EnsembleError: too few rows for this coverage.
    """
    scores = _scores(settings, probs)[np.arange(len(targets)), targets]
    return settings.model_copy(update={"threshold": _quantile(scores, settings.coverage)})


def prediction_sets(settings: PredictionSets, probs: Probs) -> Mask:
    """Which classes are in each row's set [N, K], for probabilities [N, K]. `lac` may leave a set empty.

    Raises:
        EnsembleError: the sets are not fitted.
    """
    if settings.threshold is None:
        raise EnsembleError("the prediction sets have no threshold", None, "fit them first")
    return np.asarray(_scores(settings, probs) <= settings.threshold)


def fit_band(settings: Band, values: Probs, targets: npt.NDArray[Any]) -> Band:
    """The settings with half widths fitted, from the absolute errors of values [N, T] on calibration rows.

    Each target is covered by itself.

    Raises:
        EnsembleError: too few rows for this coverage.
    """
    errors = np.abs(values - targets.reshape(values.shape))
    return settings.model_copy(update={"widths": tuple(_quantile(e, settings.coverage) for e in errors.T)})


def intervals(settings: Band, values: Probs) -> tuple[Floats, Floats]:
    """Lower and upper ends [N, T] around values [N, T].

    Raises:
        EnsembleError: the band is not fitted.
    """
    if settings.widths is None:
        raise EnsembleError("the band has no widths", None, "fit it first")
    half = np.asarray(settings.widths)
    return values - half, values + half


def _scores(settings: PredictionSets, probs: Probs) -> Floats:
    """How ill each class fits [N, K].

    `aps` (Romano, Sesia, Candes 2020, https://arxiv.org/abs/2006.02544) takes the probability of all classes
    above this one, without the class's own, so that the top class always fits best and no answer is random;
    `raps` (Angelopoulos et al. 2021, https://arxiv.org/abs/2009.14193) adds a penalty for its rank.
    """
    probs = probs.astype(np.float64)
    if settings.method == "lac":
        return np.asarray(1 - probs)
    order = np.argsort(-probs, axis=1, kind="stable")
    ranked = np.take_along_axis(probs, order, axis=1)
    above = np.cumsum(ranked, axis=1) - ranked
    if settings.method == "raps":
        above += settings.penalty * np.maximum(np.arange(1, probs.shape[1] + 1) - settings.free, 0)
    scores = np.empty_like(above)
    np.put_along_axis(scores, order, above, axis=1)
    return scores


def least_rows(coverage: float) -> int:
    """How many calibration rows a coverage needs at least."""
    share = Fraction(str(coverage))  # as it was written: 0.9 is a little more as a float
    return math.ceil(share / (1 - share))


def _quantile(scores: Floats, coverage: float) -> float:
    """The smallest score that at least (n + 1) x coverage of n scores do not exceed."""
    share = Fraction(str(coverage))  # as it was written: 0.9 is a little more as a float
    rank = math.ceil((len(scores) + 1) * share)
    if rank > len(scores):
        raise EnsembleError(
            "too few calibration rows for this coverage",
            f"{len(scores)} rows, {coverage:g}",
            f"use at least {least_rows(coverage)}",
        )
    return float(np.sort(scores)[rank - 1])
