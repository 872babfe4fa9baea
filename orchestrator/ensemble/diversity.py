"""How differently an ensemble's members answer, and what that is worth.

Pairwise measures as in Kuncheva and Whitaker 2003 (https://doi.org/10.1023/A:1022859003006); the part of the
loss that combining saves as in Krogh and Vedelsby 1995. M is the number of members, N of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats
from orchestrator.measure.tasks import class_rules

Labels = npt.NDArray[np.int64]
Pairs = Floats
"""[M, M], symmetric; NaN where a measure is undefined."""


def disagreement(labels: Labels) -> Pairs:
    """Share of the rows to which two members give different classes, 0 on the diagonal.

    With two classes it is the disagreement measure of Kuncheva and Whitaker: one of both is right.

    Args:
        labels: Predicted classes [M, N].
    """
    return np.asarray((labels[:, None] != labels[None]).mean(axis=2))


def kappa(labels: Labels) -> Pairs:
    """Cohen's kappa: agreement beyond what two members with these class frequencies have by chance.

    1 is agreement on every row, 0 that of chance. NaN where both give one and the same class to every row.

    Args:
        labels: Predicted classes [M, N].
    """
    classes = np.unique(labels)
    frequencies = (labels[:, None] == classes[:, None]).mean(axis=2)
    chance = frequencies @ frequencies.T
    beyond = 1 - disagreement(labels) - chance
    return np.asarray(np.divide(beyond, 1 - chance, out=np.full_like(chance, np.nan), where=chance < 1))


def double_fault(wrong: npt.NDArray[np.bool_]) -> Pairs:
    """Share of the rows that two members both answer wrong; on the diagonal a member's error.

    Args:
        wrong: Whether a member errs [M, N].
    """
    errors = wrong.astype(np.float64)
    return np.asarray(errors @ errors.T / errors.shape[1])


def error_correlation(errors: npt.NDArray[Any]) -> Pairs:
    """Pearson's correlation of two members' errors; NaN where one of them never varies.

    Of right and wrong answers it is the coefficient rho of Kuncheva and Whitaker.

    Args:
        errors: [M, N]: whether a member errs, or by how much.
    """
    centred = errors - errors.mean(axis=1, keepdims=True)
    length = np.sqrt(np.square(centred).sum(axis=1))
    scale = np.outer(length, length)
    products = centred @ centred.T
    return np.asarray(np.divide(products, scale, out=np.full_like(scale, np.nan), where=scale > 0))


@dataclass(frozen=True)
class Decomposition:
    """Mean loss of the members, and of the ensemble that they make."""

    loss: str
    """`nll` in nats a row, or `squared_error` in squared units."""
    members: float
    """Mean over the members, by weight."""
    ensemble: float

    @property
    def ambiguity(self) -> float:
        """What combining saves.

        Of a mean of values exactly their mean squared distance from it (Krogh and Vedelsby), of a mean of
        probabilities the gap of Jensen's inequality: never negative. Of other ensembles it may be.
        """
        return self.members - self.ensemble


def decompose(
    scores: Sequence[Floats],
    ensemble: Floats,
    targets: npt.NDArray[Any],
    task: Task,
    weights: Sequence[float] | None = None,
) -> Decomposition:
    """The members' loss and the ensemble's.

    Args:
        scores: [N, K] of each member.
        ensemble: The same [N, K] of the ensemble.
        targets: Classes [N], labels [N, K] or values [N, K].
        task: Which of them.
        weights: One a member, summing to 1; alike when None.
    """
    if task != "regression":
        kind = class_rules(task)
        losses = [float(kind.losses(found, targets).mean()) for found in (*scores, ensemble)]
    else:
        truth = targets.reshape(len(targets), -1)
        losses = [float(np.square(found - truth).mean()) for found in (*scores, ensemble)]
    name = "squared_error" if task == "regression" else "nll"
    return Decomposition(name, float(np.average(losses[:-1], weights=weights)), losses[-1])
