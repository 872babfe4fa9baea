"""A stack's meta-learner: a linear model of all members' answers, drawn towards their plain mean.

Classification: multinomial logistic regression on the members' log-probabilities (Wolpert 1992; Ting and
Witten 1999, https://arxiv.org/abs/1105.5466), added to their mean. Regression: ridge on how far each member
is from their mean (Breiman 1996, Stacked regressions). The L2 penalty is on what is added to the mean, so
that few rows lead back to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats, Rows, deviations
from orchestrator.ensemble.folds import cross_validated
from orchestrator.ensemble.objective import Objective
from orchestrator.ensemble.weights import DECIMALS
from orchestrator.errors import EnsembleError
from orchestrator.measure.metrics import log_softmax
from orchestrator.measure.tasks import rules

STRENGTHS = (100.0, 10.0, 1.0, 0.1, 0.01, 0.001)
"""L2 penalties that are tried, from the strongest."""
FLOOR = -12.0
"""Log-probabilities below it count as it: one member's certainty must not outweigh all else."""


def meta_answer(members: Sequence[Floats], coefficients: Floats, task: Task) -> Floats:
    """Log-probabilities or values [N, K] of members with such [N, K].

    Args:
        members: One array a member.
        coefficients: [M * K + 1, K]; the last row is the intercept. Zeros give the members' mean (of
            log-probabilities, renormalized).
        task: What the members' arrays are.

    Raises:
        EnsembleError: the coefficients are for another number of members or outputs.
    """
    features, offset = _features(members, task)
    if coefficients.shape != (features.shape[1], offset.shape[1]):
        raise EnsembleError(
            "the stack's coefficients do not fit the members' outputs",
            f"{list(coefficients.shape)} for {len(members)} members of {offset.shape[1]} outputs",
            "fit the ensemble again",
        )
    found = offset + features @ coefficients
    return rules(task).normalized(found)


def mean_answer(members: Sequence[Floats], task: Task) -> Floats:
    """The members' mean that the meta-learner adds to [N, K]."""
    mean = _features(members, task)[1]
    return rules(task).normalized(mean)


def fit_meta(members: Sequence[Floats], targets: npt.NDArray[Any], task: Task, strength: float) -> Floats:
    """Coefficients [M * K + 1, K] of least mean loss plus strength / 2 * their squared sum.

    The loss is the negative log-likelihood, or half the squared error; there coefficients and errors are
    in units of the targets' deviations.
    """
    features, offset = _features(members, task)
    if task == "regression":
        truth = np.asarray(targets, dtype=np.float64).reshape(offset.shape)
        # A coefficient counts in units of the deviations of the outputs that it joins.
        units = np.append(np.tile(deviations(truth), len(members)), 1.0)
        gram = features.T @ features / len(features) + strength * np.diag(units**2)
        return np.round(np.linalg.solve(gram, features.T @ (truth - offset) / len(features)), DECIMALS)
    classes = offset.shape[1]
    onehot = np.eye(classes)[targets]

    def loss(flat: Floats) -> tuple[float, Floats]:
        weights = flat.reshape(-1, classes)
        logs = log_softmax(offset + features @ weights)
        gradient = features.T @ (np.exp(logs) - onehot) / len(onehot) + strength * weights
        penalty = strength / 2 * float((weights**2).sum())
        return penalty - float((logs * onehot).sum(axis=1).mean()), gradient.ravel()

    start = np.zeros(features.shape[1] * classes)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-7})
    return np.asarray(np.round(found.x.reshape(-1, classes), DECIMALS))


def out_of_fold(members: Sequence[Floats], targets: npt.NDArray[Any], task: Task, strength: float) -> Floats:
    """Answers [N, K] to every row of a meta-learner fitted without its fold."""

    def held_out(rows: Rows, others: Rows) -> Floats:
        coefficients = fit_meta([member[rows] for member in members], targets[rows], task, strength)
        return meta_answer([member[others] for member in members], coefficients, task)

    return cross_validated(len(targets), held_out)


def best_strength(members: Sequence[Floats], targets: npt.NDArray[Any], task: Task) -> float:
    """The strength of least out-of-fold loss; of equal ones the strongest.

    Not the strongest within a standard error, as for the weights of a mix (`strength`): a stack that is held
    back too much gives the members' mean, which knows less than weights do.
    """
    objective = Objective(targets, task)
    return min(STRENGTHS, key=lambda strength: objective.loss(out_of_fold(members, targets, task, strength)))


def _features(members: Sequence[Floats], task: Task) -> tuple[Floats, Floats]:
    """[N, M * K + 1] with a column of ones, and the members' mean [N, K] that they are added to."""
    stacked = np.stack(members)
    if task == "classification":
        stacked = np.maximum(stacked, FLOOR)
    rows, mean = stacked.shape[1], stacked.mean(axis=0)
    if task == "regression":
        stacked = stacked - mean
    flat = stacked.transpose(1, 0, 2).reshape(rows, -1)
    return np.concatenate([flat, np.ones((rows, 1))], axis=1), mean
