"""A weight for each member and class (regression: each output), for members that know different classes.

For each class the weights minimise the squared error of that class's probability: the multi-response least
squares of Ting and Witten 1999, Issues in stacked generalization (JAIR 10), on the simplex. They are pulled
towards the weights that are alike for all classes; how strongly is chosen by cross-validation, and
"entirely" is among the choices. A class is one small quadratic program, so the result is the optimum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.objective import Objective
from orchestrator.ensemble.strength import SIMPLE, Regularised, fit_regularised
from orchestrator.ensemble.weights import (
    Weights,
    errors_of,
    finished,
    simplex_minimum,
)
from orchestrator.errors import EnsembleError
from orchestrator.measure.tasks import rules

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, SIMPLE)


def by_class(stacked: Floats, weights: Floats, task: Task) -> Floats:
    """Scores [N, K] of a mix with weights [M, K]; probabilities are renormalised.

    Args:
        stacked: Members' scores [M, N, K].
        weights: >= 0; each column sums to 1.
        task: Which scores these are.

    Raises:
        EnsembleError: there are weights for another number of classes.
    """
    if weights.shape[1] != stacked.shape[2]:
        raise EnsembleError(
            "class_weights do not fit the members' outputs",
            f"{weights.shape[1]} columns for {stacked.shape[2]} outputs",
            "fit the ensemble again",
        )
    kind = rules(task)
    return kind.normalized(kind.mixture(stacked, weights[:, None, :]))


def fit_class_weights(
    scores: Sequence[Floats],
    objective: Objective,
    shared: Weights | None = None,
    strength: float | None = None,
) -> Regularised:
    """Weights [M, K] fitted on all rows.

    Args:
        scores: One array [N, K] a member.
        objective: On the same rows; decides the strength.
        shared: Weights that are pulled to; fitted when None.
        strength: In units of the members' mean squared error; chosen among `STRENGTHS` when None.
    """
    return fit_regularised(
        scores, objective, STRENGTHS, _class_weights, by_class, shared=shared, strength=strength
    )


def _class_weights(stacked: Floats, objective: Objective, shared: Floats, strength: float) -> Floats:
    """[M, K]; for each class argmin of w'Hw + c |w - shared|^2, where H [M, M] are its mean error products.

    c is `strength` times the mean over members and classes of the squared error, so a class with few errors,
    such as a rare one, stays nearer to the shared weights.
    """
    members, rows, classes = stacked.shape
    errors = errors_of(stacked, objective.truth, objective.task).reshape(members, rows, classes)
    of_class = errors.transpose(2, 0, 1)
    products = of_class @ of_class.transpose(0, 2, 1) / rows
    pull = max(strength * float(np.trace(products, axis1=1, axis2=2).mean()) / members, 1e-12)
    ridge = 2 * pull * np.eye(members)
    columns = [finished(simplex_minimum(2 * found + ridge, -2 * pull * shared)) for found in products]
    return np.array(columns).T
