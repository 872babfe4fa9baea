"""A gate: weights that depend on the row, by how sure each member is.

Mixture of experts (Jacobs, Jordan, Nowlan, Hinton 1991) with a gate so small that validation rows can fit
it: a member's weight is the softmax over members of a constant plus a linear function of that member's own
features. A member that gave no answer can so be left out without a change to the others' proportions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize

from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats, entropy
from orchestrator.ensemble.objective import LEAST, Objective
from orchestrator.ensemble.strength import SIMPLE, Regularised, fit_regularised
from orchestrator.ensemble.weights import DECIMALS, Weights, errors_of
from orchestrator.errors import EnsembleError
from orchestrator.measure.metrics import log_softmax
from orchestrator.measure.tasks import rules

STRENGTHS = (0.001, 0.01, 0.1, 1.0, SIMPLE)
LEAST_SHARE = 1e-3
"""Weight from which a member starts that the shared weights leave out."""
STEPS = 200
SMALL = 1e-4
"""Slopes below this keep digits instead of decimals."""


def features(scores: Floats, task: Task) -> Floats:
    """What the gate sees of one member [N, F].

    Classification: log of the top probability, entropy in nats, gap between the two highest probabilities.
    Regression: the values themselves.
    """
    if task == "regression":
        return scores
    top_two = np.sort(np.exp(scores), axis=1)[:, -2:]
    return np.stack([scores.max(axis=1), entropy(scores), top_two[:, -1] - top_two[:, 0]], axis=1)


def gated(stacked: Floats, gate: Floats, task: Task) -> Floats:
    """Scores [N, K] of a mix whose weights the gate [M, 1 + F] chooses for each row.

    Arguments and errors as for `gate_shares`.
    """
    return rules(task).mixture(stacked, gate_shares(stacked, gate, task)[:, :, None])


def gate_shares(stacked: Floats, gate: Floats, task: Task) -> Floats:
    """Each member's weight in each row [M, N].

    Args:
        stacked: Members' scores [M, N, K].
        gate: For each member a constant, then a factor a feature.
        task: Which scores these are.

    Raises:
        EnsembleError: the gate is for another number of features.
    """
    seen = np.stack([features(scores, task) for scores in stacked])
    if gate.shape[1] != 1 + seen.shape[2]:
        raise EnsembleError(
            "the gate does not fit the members' outputs",
            f"{gate.shape[1]} numbers a member for {seen.shape[2]} features",
            "fit the ensemble again",
        )
    return np.asarray(np.exp(_log_shares(seen, gate)))


def _log_shares(seen: Floats, gate: Floats) -> Floats:
    """Log of the weights [M, N] from features [M, N, F]."""
    return log_softmax((gate[:, :1] + (gate[:, None, 1:] * seen).sum(axis=2)).T).T


def fit_gate(
    scores: Sequence[Floats],
    objective: Objective,
    shared: Weights | None = None,
    strength: float | None = None,
) -> Regularised:
    """The gate [M, 1 + F] of least negative log-likelihood (regression: scaled squared error) on all rows.

    Half of `strength` times the squared coefficients of standardised features is added to the mean loss; a
    strong pull leaves the shared weights. L-BFGS starts there: the loss is not convex, but the result depends
    on the inputs alone.

    Args:
        scores: One array [N, K] a member.
        objective: On the same rows; decides the strength.
        shared: Weights without the gate; fitted when None.
        strength: Chosen among `STRENGTHS` by cross-validation when None.
    """
    return fit_regularised(scores, objective, STRENGTHS, _gate, gated, shared=shared, strength=strength)


def _gate(stacked: Floats, objective: Objective, shared: Floats, strength: float) -> Floats:
    seen = np.stack([features(scores, objective.task) for scores in stacked])
    middle, spread = seen.mean(axis=1, keepdims=True), seen.std(axis=1, keepdims=True)
    spread[spread == 0] = 1.0
    inputs = np.concatenate([np.ones((*seen.shape[:2], 1)), (seen - middle) / spread], axis=2)
    start = np.log(np.maximum(shared, LEAST_SHARE))
    row_loss = (
        _likelihood(stacked, objective)
        if objective.task == "classification"
        else _squares(stacked, objective)
    )
    shape = (len(stacked), inputs.shape[2])

    def loss(flat: Floats) -> tuple[float, Floats]:
        added = flat.reshape(shape)
        logits = start[:, None] + (added[:, None, :] * inputs).sum(axis=2)
        shares = np.exp(log_softmax(logits.T).T)
        value, slope = row_loss(shares)
        through = shares * (slope - (shares * slope).sum(axis=0))
        gradient = np.einsum("mn,mnf->mf", through, inputs) + strength * added
        return value + strength / 2 * float(np.square(flat).sum()), gradient.ravel()

    found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    factors = np.asarray(found.x).reshape(shape)
    # Back from standardised features to those that a row comes with.
    slopes = _of_digits(factors[:, 1:] / spread[:, 0])
    constants = start + factors[:, 0] - (slopes * middle[:, 0]).sum(axis=1)
    return np.concatenate([np.round(constants, DECIMALS)[:, None], slopes], axis=1)


def _of_digits(slopes: Floats) -> Floats:
    """To `DECIMALS` decimals, small ones to as many digits: a slope is per unit of its feature."""
    digits = np.array([float(f"{slope:.{DECIMALS}g}") for slope in slopes.flat]).reshape(slopes.shape)
    return np.where(np.abs(slopes) < SMALL, digits, np.round(slopes, DECIMALS))


RowLoss = Callable[[Floats], tuple[float, Floats]]
"""Weights [M, N] -> mean loss, and its derivatives [M, N]."""


def _likelihood(stacked: Floats, objective: Objective) -> RowLoss:
    rows = np.arange(stacked.shape[1])
    likely = np.maximum(np.exp(stacked[:, rows, objective.truth]), LEAST)

    def value(shares: Floats) -> tuple[float, Floats]:
        mixed = (shares * likely).sum(axis=0)
        return -float(np.log(mixed).mean()), -likely / mixed / len(rows)

    return value


def _squares(stacked: Floats, objective: Objective) -> RowLoss:
    members, rows, outputs = stacked.shape
    errors = errors_of(stacked, objective.truth, "regression").reshape(members, rows, outputs)

    def value(shares: Floats) -> tuple[float, Floats]:
        mixed = (shares[:, :, None] * errors).sum(axis=0)
        return float(np.square(mixed).mean()), 2 * (mixed * errors).sum(axis=2) / mixed.size

    return value
