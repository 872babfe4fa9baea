"""Weights of a logarithmic opinion pool, the weighted geometric mean of members' probabilities.

Genest and Zidek 1986, Combining probability distributions (https://doi.org/10.1214/ss/1177013825), section 3.
A member that is sure of what a row is not counts for more than in a mean, where its word is one of several.
The likelihood is convex in the weights, so a few Newton steps, each a quadratic program on the simplex, reach
the optimum, as for a mean (`weights`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.weights import (
    ENOUGH,
    GAP,
    STEPS,
    Members,
    Weights,
    duality_gap,
    finished,
    simplex_minimum,
)
from orchestrator.errors import EnsembleError
from orchestrator.measure.metrics import log_softmax

RIDGE = 1e-9
"""Of the largest curvature or slope, added to every curvature."""


def log_pool_weights(scores: Members, targets: npt.NDArray[np.int64]) -> Weights:
    """Weights of least negative log-likelihood of the members' weighted geometric mean.

    Args:
        scores: Log-probabilities [N, K], one array a member.
        targets: Labels [N].

    Raises:
        EnsembleError: the solver did not reach the optimum.
    """
    stacked = np.stack(list(scores))
    members, rows, _ = stacked.shape
    of_truth = stacked[:, np.arange(rows), targets].mean(axis=1)
    weights = np.full(members, 1 / members)
    gradient = np.zeros(members)
    for _ in range(STEPS):
        chances = np.exp(log_softmax(np.tensordot(weights, stacked, axes=1)))
        means = (chances * stacked).sum(axis=2)
        gradient = means.mean(axis=1) - of_truth
        if duality_gap(weights, gradient) <= GAP:
            return finished(weights)
        flat = (np.sqrt(chances) * (stacked - means[:, :, None])).reshape(members, -1)
        hessian = flat @ flat.T / rows
        # Very sure members leave no curvature; the gradient then has parts that no step would answer.
        hessian += RIDGE * max(float(np.abs(hessian).max()), float(np.ptp(gradient))) * np.eye(members)
        target = simplex_minimum(hessian, gradient - hessian @ weights)
        weights = _line_search(stacked, targets, weights, target - weights, gradient)
    if duality_gap(weights, gradient) <= ENOUGH:
        return finished(weights)
    raise EnsembleError("the weights of the geometric mean did not converge", duality_gap(weights, gradient))


def _line_search(
    stacked: Floats, targets: npt.NDArray[np.int64], weights: Floats, step: Floats, gradient: Floats
) -> Floats:
    """Halve the step until the likelihood improves enough (Armijo)."""

    def loss(trial: Floats) -> float:
        pooled = log_softmax(np.tensordot(trial, stacked, axes=1))
        return -float(pooled[np.arange(len(targets)), targets].mean())

    start, slope, length = loss(weights), float(gradient @ step), 1.0
    while length > 1e-6 and loss(weights + length * step) > start + 1e-4 * length * slope:
        length /= 2
    return weights + length * step
