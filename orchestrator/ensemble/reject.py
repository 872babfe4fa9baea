"""Rows that an ensemble would rather not answer: those it is less sure of than a fitted threshold.

The reject option of Chow 1970 (https://doi.org/10.1109/TIT.1970.1054406), by a score of the whole ensemble:
how well one tells rows that are out of the training's scope from others is `detection_auroc`'s to say. The
settings are at the tree's root: `fit_reject` fills them in, `rejected` applies them to what a walk gave.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from orchestrator.config.calibration import Reject
from orchestrator.config.ensemble import Combined, Node
from orchestrator.config.signature import Task
from orchestrator.ensemble.attribution import disagreement, member_answers, member_weights
from orchestrator.ensemble.certainty import certainty
from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.thresholds import NONE_LEAVES, candidates
from orchestrator.ensemble.tree import Prediction
from orchestrator.errors import EnsembleError

Mask = npt.NDArray[np.bool_]


def fit_reject(settings: Reject, tree: Node, inside: Prediction, outside: Prediction | None = None) -> Reject:
    """The settings with the threshold fitted: midway between two observed certainties, so that rounding in
    another placement moves no row to the other side.

    Args:
        settings: What is asked for.
        tree: A fitted tree.
        inside: Its answers on the validation rows.
        outside: On rows that are out of scope, for a `recall`.

    Raises:
        EnsembleError: a recall without rows out of scope, or so many of them are as sure as an answer can be
            that a threshold would leave no row at all.
    """
    kept = sureness(settings, tree, inside)
    if settings.recall is None:
        # As many rows as may be rejected lie below the threshold, or fewer where several are as sure.
        return settings.model_copy(update={"threshold": _below(kept, len(kept) * (1 - settings.keep))})
    if outside is None or not len(outside):
        raise EnsembleError("a reject by recall needs rows that are out of scope", None, "use keep instead")
    found = sureness(settings, tree, outside)
    return settings.model_copy(
        update={"threshold": _above(found, kept, math.ceil(settings.recall * len(found)))}
    )


def rejected(tree: Node, prediction: Prediction) -> Mask | None:
    """Which rows [N] a fitted tree rejects; None where it has no such settings."""
    settings = tree.reject if isinstance(tree, Combined) else None
    if settings is None or prediction.probs is None:
        return None
    if settings.threshold is None:
        raise EnsembleError("the reject has no threshold", None, "fit it first")
    return np.asarray(sureness(settings, tree, prediction) < settings.threshold)


def sureness(settings: Reject, tree: Node, prediction: Prediction) -> Floats:
    """How sure [N] the answers are, from 0 to 1, by the settings' score."""
    task: Task = "classification"
    if settings.by == "agreement":
        # Of the members that a row was asked of, by what they counted in its answer.
        answers, weights = member_answers(tree, prediction, task), member_weights(tree, prediction, task)
        return np.asarray(1 - disagreement(answers, weights, prediction, task).astype(np.float64))
    return certainty(settings.by, prediction.scores, None)


def _below(sure: Floats, most: float) -> float:
    """The highest threshold that at most so many values lie below."""
    tried = np.array(candidates(sure, len(sure)))
    return float(tried[np.searchsorted(np.sort(sure), tried) <= most + 1e-9].max())


def _above(found: Floats, kept: Floats, least: int) -> float:
    """The lowest threshold that at least so many of the values found lie below."""
    both = np.concatenate([found, kept])
    tried = np.array([value for value in candidates(both, len(both)) if value < NONE_LEAVES])
    fits = tried[np.searchsorted(np.sort(found), tried) >= least]
    if not len(fits):
        raise EnsembleError(
            "no threshold rejects that many of the rows out of scope and answers any row at all: "
            f"{np.mean(found < found.max()):.0%} of them are less sure than the surest",
            f"recall {least / len(found):.2f}",
            "lower recall, or reject by confidence",
        )
    return float(fits.min())
