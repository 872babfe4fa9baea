"""Members' outputs to scores, and scores to one score.

Inside an ensemble a row's scores are float64 log-probabilities (classification) or values in raw units
(regression). Probabilities are pooled, not logits: their mean is a mixture, whose negative
log-likelihood is never worse than the members' mean (Jensen). The pooling runs in log space, so that
nothing is clipped and a weight of 1 gives that member's scores to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.signature import Task
from orchestrator.measure.metrics import log_softmax

Floats = npt.NDArray[np.float64]


def scores_of(outputs: npt.NDArray[np.floating[Any]], task: Task, temperature: float | None = None) -> Floats:
    """Scores [N, K] of one member's outputs: log-softmax of logits / temperature, or regression values."""
    if task == "classification":
        return log_softmax(outputs if temperature is None else outputs.astype(np.float64) / temperature)
    return np.asarray(outputs, dtype=np.float64)


def pool(scores: Sequence[Floats], weights: Sequence[float] | None, task: Task) -> Floats:
    """Weighted mean of the members' probabilities or values; equal weights when `weights` is None.

    Args:
        scores: One array [N, K] a member: log-probabilities, or values.
        weights: One a member, >= 0, summing to 1.
        task: Which of the two the scores are.

    Returns:
        Pooled scores [N, K]: log of the mean probability, or the mean value.
    """
    stacked = np.stack(scores)
    shares = np.full(len(scores), 1 / len(scores)) if weights is None else np.asarray(weights, np.float64)
    if task == "regression":
        return np.asarray(np.einsum("m,mnk->nk", shares, stacked))
    used = shares > 0
    terms = stacked[used] + np.log(shares[used])[:, None, None]
    top = terms.max(axis=0)
    return np.asarray(top + np.log(np.exp(terms - top).sum(axis=0)))


def probabilities(scores: Floats) -> Floats:
    """Probabilities [N, K] of log-probabilities, summing to 1 to rounding."""
    probs = np.exp(scores)
    return np.asarray(probs / probs.sum(axis=1, keepdims=True))
