"""Weights on the simplex: of a mix, by least negative log-likelihood or least squared error; and of votes.

Both problems of a mix are convex and are solved to the optimum without any regularisation: squared error is
one quadratic program; the likelihood takes a few Newton steps, each such a program (sequential quadratic
programming for mixture proportions: Kim, Carbonetto, Stephens, Anitescu 2020,
https://arxiv.org/abs/1806.01412). The result depends on the inputs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats, deviations
from orchestrator.errors import EnsembleError
from orchestrator.measure.tasks import class_rules

Members = Sequence[Floats] | Floats
"""Scores [N, K] of each of M members, or [M, N, K] in one array."""
Weights = tuple[float, ...]
"""One a member: >= 0, of sum 1."""
GAP = 1e-9
"""Distance from the optimum, in nats a row, at which the solver stops."""
ENOUGH = 1e-6
"""Distance that is still accepted where nearly equal members leave no digits to come closer."""
STEPS = 200
DECIMALS = 10
"""Weights are rounded to this many: sums taken in another order then give the same weights."""


def likelihood_weights(scores: Members, targets: npt.NDArray[np.int64], prior: int = 0) -> Weights:
    """Weights of least negative log-likelihood of the mixed probabilities.

    Args:
        scores: Log-probabilities [N, K], one array a member.
        targets: Labels [N].
        prior: Rows added for each member that it alone answers, surely and rightly: the most likely weights
            under a Dirichlet prior of 1 + `prior`.

    Raises:
        EnsembleError: the solver did not reach the optimum.
    """
    chosen = np.stack([member[np.arange(len(targets)), targets] for member in scores], axis=1)
    # Each row scaled by its best member: changes the likelihood by a constant and keeps exp in range.
    odds = np.exp(chosen - chosen.max(axis=1, keepdims=True))
    odds = np.concatenate([odds, np.repeat(np.eye(len(scores)), prior, axis=0)])
    weights = np.full(len(scores), 1 / len(scores))
    for _ in range(STEPS):
        mixed = odds @ weights
        shares = odds / mixed[:, None]
        gradient = -shares.mean(axis=0)
        if duality_gap(weights, gradient) <= GAP:
            return finished(weights)
        hessian = shares.T @ shares / len(shares)
        target = simplex_minimum(hessian, gradient - hessian @ weights)
        weights = _line_search(odds, weights, target - weights, gradient)
    if duality_gap(weights, gradient) <= ENOUGH:
        return finished(weights)
    raise EnsembleError("the mix weights did not converge", duality_gap(weights, gradient))


def squared_error_weights(scores: Members, targets: npt.NDArray[Any], task: Task) -> Weights:
    """Weights of least squared error of the mixed values, or of the mixed probabilities (Brier score).

    Values are scaled to targets of unit deviation.

    Args:
        scores: Log-probabilities [N, K], log-odds [N, K] or values [N, T], one array a member.
        targets: Classes [N], labels [N, K] or values [N, T].
        task: Which of them.
    """
    errors = errors_of(scores, targets, task)
    return finished(simplex_minimum(errors @ errors.T / errors.shape[1], np.zeros(len(errors))))


def errors_of(scores: Members, targets: npt.NDArray[Any], task: Task) -> Floats:
    """Errors [M, N * K] of scores [M, N, K]: weights that sum to 1 mix them as they mix the answers.

    Classification: of probabilities, against 1 for the label and 0 for the others; each of several labels is
    a row of two classes. Regression: of values, in units of the targets' deviation.
    """
    if task != "regression":
        kind = class_rules(task)
        errors, labels = np.exp(kind.as_classes(np.array(scores))), kind.classes(targets)
        errors[:, np.arange(len(labels)), labels] -= 1.0
        return errors.reshape(len(errors), -1)
    truth = targets.reshape(len(targets), -1)
    scale = deviations(truth)
    return np.stack([((member - truth) / scale).ravel() for member in scores])


def shared_weights(scores: Members, targets: npt.NDArray[Any], task: Task, prior: int = 0) -> Weights:
    """Weights that are alike for all rows and classes: of least likelihood loss or squared error, by task.

    Args:
        scores: As for `errors_of`.
        targets: Of these rows.
        task: Which of them.
        prior: Rows more for each member, see `likelihood_weights`; not of a regression.
    """
    if task == "regression":
        return squared_error_weights(scores, targets, task)
    kind = class_rules(task)
    labels = kind.classes(targets)
    found = [kind.as_classes(member) for member in scores]
    return likelihood_weights(found, labels, prior * len(labels) // len(targets))


def vote_weights(scores: Members, targets: npt.NDArray[np.int64]) -> Weights:
    """Shares of the votes: log(p / (1 - p)) + log(K - 1) for a member of accuracy p, scaled to sum 1.

    The optimum where members err independently and their errors fall on the other classes alike (Kuncheva
    2014, Combining Pattern Classifiers, 2nd ed., ch. 4; Kuncheva and Rodriguez 2014,
    doi:10.1007/s10115-012-0586-6). p is (hits + 1) / (N + 2), so it is never 0 or 1. A member no better than
    chance has no vote; where none is better, all votes are equal.

    Args:
        scores: Log-probabilities [N, K], one array a member.
        targets: Labels [N].
    """
    hits = np.array([(member.argmax(axis=1) == targets).sum() for member in scores])
    odds = (hits + 1) / (len(targets) - hits + 1)
    strength = np.maximum(np.log(odds * (scores[0].shape[1] - 1)), 0.0)
    if not strength.any():
        strength[:] = 1.0
    return finished(strength / strength.sum())


def duality_gap(weights: Floats, gradient: Floats) -> float:
    """Upper bound of how far a convex function at `weights` lies above its least value on the simplex.

    Zero exactly at the optimum: there the gradient is equal on all used members and not lower on others.
    """
    return float(weights @ gradient - gradient.min())


def simplex_minimum(matrix: npt.NDArray[Any], linear: npt.NDArray[Any]) -> Floats:
    """argmin of 1/2 w'Hw + c'w over w >= 0, sum(w) = 1, by an active-set method.

    From the best vertex, the member with the lowest gradient enters; the optimum over the entered
    members is found from its linear equations, and members that it would make negative leave on the way.

    Args:
        matrix: H, symmetric positive semidefinite [M, M]; may be singular (equal members).
        linear: c [M], in the range of H up to a constant, so that the minimum on every face exists.
    """
    members = len(linear)
    scale = max(float(np.abs(matrix).max()), float(np.abs(linear).max()), 1e-300)
    weights = np.zeros(members)
    weights[int(np.argmin(np.diag(matrix) / 2 + linear))] = 1.0
    for _ in range(20 * members):
        gradient = matrix @ weights + linear
        if duality_gap(weights, gradient) <= 1e-13 * scale:
            break
        used = weights > 0
        used[int(gradient.argmin())] = True
        weights = _face_minimum(matrix, linear, weights, used)
    return weights


def _face_minimum(
    matrix: npt.NDArray[Any], linear: npt.NDArray[Any], weights: Floats, used: npt.NDArray[np.bool_]
) -> Floats:
    """From `weights` towards the optimum over `used` members, dropping those that reach zero."""
    while True:
        face = np.flatnonzero(used)
        system = np.ones((len(face) + 1, len(face) + 1))
        system[:-1, :-1], system[-1, -1] = matrix[np.ix_(face, face)], 0.0
        # Solved for the step: its right side is small near the optimum, which keeps the digits.
        gradient = matrix[face] @ weights + linear[face]
        step = np.linalg.lstsq(system, np.append(-gradient, 0.0), rcond=1e-13)[0][:-1]
        step -= step.mean()
        current = weights[face]
        falling = step < 0
        reach = np.full(len(face), np.inf)
        reach[falling] = current[falling] / -step[falling]
        length = min(1.0, float(reach.min()))
        moved = np.maximum(current + length * step, 0.0)
        if length < 1.0:
            moved[int(reach.argmin())] = 0.0
        weights = np.zeros_like(weights)
        weights[face] = moved / moved.sum()
        if length >= 1.0:
            return weights
        used = weights > 0


def _line_search(odds: Floats, weights: Floats, step: Floats, gradient: Floats) -> Floats:
    """Halve the step until the likelihood improves enough (Armijo); else one EM step, which never harms."""
    start, slope = float(np.log(odds @ weights).mean()), float(gradient @ step)
    length = 1.0
    while length > 1e-6:
        trial = weights + length * step
        mixed = odds @ trial
        if mixed.min() > 0 and -np.log(mixed).mean() <= -start + 1e-4 * length * slope:
            return trial
        length /= 2
    return np.asarray(weights * (odds / (odds @ weights)[:, None]).mean(axis=0))


def finished(weights: Floats) -> Weights:
    """Weights as settings hold them: rounded, and of sum 1."""
    rounded = np.round(np.maximum(weights, 0.0), DECIMALS)
    return tuple((rounded / rounded.sum()).tolist())
