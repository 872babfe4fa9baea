"""Answers with a stated chance to be right: sets of classes, and intervals around values.

Split conformal prediction (Vovk et al. 2005; Angelopoulos and Bates 2021, https://arxiv.org/abs/2107.07511):
on calibration rows that nothing was fitted on, a score says how ill the truth fits the answer. What fits no
worse than all but a small share of them is let in. For rows drawn like the calibration rows the truth is in
with at least the chosen probability, whatever the model; the promise is an average over rows.

A library so far: neither a run nor the server calls it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from orchestrator.config.calibration import Band, PredictionSets
from orchestrator.ensemble.combine import Floats
from orchestrator.errors import EnsembleError

Mask = npt.NDArray[np.bool_]


def fit_sets(settings: PredictionSets, probs: Floats, targets: npt.NDArray[np.int64]) -> PredictionSets:
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


def prediction_sets(settings: PredictionSets, probs: Floats) -> Mask:
    """Which classes are in each row's set [N, K], for probabilities [N, K]. `lac` may leave a set empty.

    Raises:
        EnsembleError: the sets are not fitted.
    """
    if settings.threshold is None:
        raise EnsembleError("the prediction sets have no threshold", None, "fit them first")
    return np.asarray(_scores(settings, probs) <= settings.threshold)


def fit_band(settings: Band, values: Floats, targets: Floats) -> Band:
    """The settings with half widths fitted, from the absolute errors of values [N, T] on calibration rows.

    Each target is covered by itself.

    Raises:
        EnsembleError: too few rows for this coverage.
    """
    errors = np.abs(values - targets.reshape(values.shape))
    return settings.model_copy(update={"widths": tuple(_quantile(e, settings.coverage) for e in errors.T)})


def intervals(settings: Band, values: Floats) -> tuple[Floats, Floats]:
    """Lower and upper ends [N, T] around values [N, T].

    Raises:
        EnsembleError: the band is not fitted.
    """
    if settings.widths is None:
        raise EnsembleError("the band has no widths", None, "fit it first")
    half = np.asarray(settings.widths)
    return values - half, values + half


def _scores(settings: PredictionSets, probs: Floats) -> Floats:
    """How ill each class fits [N, K].

    `aps` (Romano, Sesia, Candes 2020, https://arxiv.org/abs/2006.02544) takes the probability of all classes
    above this one, without the class's own, so that the top class always fits best and no answer is random;
    `raps` (Angelopoulos et al. 2021, https://arxiv.org/abs/2009.14193) adds a penalty for its rank.
    """
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


def _quantile(scores: Floats, coverage: float) -> float:
    """The smallest score that at least (n + 1) x coverage of n scores do not exceed."""
    rank = math.ceil((len(scores) + 1) * coverage)
    if rank > len(scores):
        raise EnsembleError(
            "too few calibration rows for this coverage",
            f"{len(scores)} rows, {coverage:g}",
            f"use at least {math.ceil(coverage / (1 - coverage))}",
        )
    return float(np.sort(scores)[rank - 1])
