"""How strongly fitted numbers are pulled towards simple ones: chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats, Rows
from orchestrator.ensemble.folds import FOLDS, cross_validated
from orchestrator.ensemble.objective import Objective
from orchestrator.ensemble.weights import Weights, shared_weights

SIMPLE = 1e6
"""A strength at which nothing but the simple numbers is left."""


@dataclass(frozen=True)
class Regularised:
    """Numbers fitted beside weights that are alike for all."""

    shared: Weights
    """The weights [M] that a large strength leads to."""
    strength: float
    fitted: tuple[tuple[float, ...], ...]
    """One row a member."""


Learn = Callable[[Floats, Objective, Floats, float], Floats]
"""Members' scores [M, N, K], the objective on these rows, shared weights [M], strength -> numbers [M, F]."""
Apply = Callable[[Floats, Floats, Task], Floats]
"""Members' scores [M, N, K], numbers [M, F], task -> scores [N, K]."""


def fit_regularised(
    scores: Sequence[Floats],
    objective: Objective,
    strengths: Sequence[float],
    learn: Learn,
    apply: Apply,
    *,
    shared: Weights | None,
    strength: float | None,
) -> Regularised:
    """Numbers learned on all rows, at a strength chosen by cross-validation when None.

    Args:
        scores: One array [N, K] a member.
        objective: On the same rows; decides the strength.
        strengths: To choose from.
        learn: Fits the numbers.
        apply: Answers with them.
        shared: Weights that a large strength leads to; fitted when None, on each fold's own rows, too.
        strength: Given.
    """
    stacked = np.stack(scores)

    def fit(rows: Rows, strength: float) -> tuple[Weights, Floats]:
        part = objective.part(rows)
        middle = shared or shared_weights(stacked[:, rows], part.truth, part.task)
        return middle, learn(stacked[:, rows], part, np.array(middle), strength)

    def held_out(strength: float, rows: Rows, others: Rows) -> Floats:
        return apply(stacked[:, others], fit(rows, strength)[1], objective.task)

    chosen = strength or choose_strength(strengths, objective, held_out)
    middle, found = fit(np.arange(stacked.shape[1]), chosen)
    return Regularised(middle, chosen, tuple(tuple(row) for row in found.tolist()))


def choose_strength(
    strengths: Sequence[float], objective: Objective, held_out: Callable[[float, Rows, Rows], Floats]
) -> float:
    """The strongest one that is as good as the best, for scores that each row gets from a fit without it.

    As good: within one standard error of the rows' differences in loss (the one-standard-error rule of
    Breiman, Friedman, Olshen, Stone 1984), and of the same metric where there is one.
    With too few rows for folds: the strongest.

    Args:
        strengths: To try.
        objective: On all rows.
        held_out: (strength, rows to fit on, other rows) -> scores [n, K] of the other rows.
    """
    count = len(objective.targets)
    if count < 2 * FOLDS:
        return max(strengths)
    found = {strength: cross_validated(count, partial(held_out, strength)) for strength in strengths}
    losses = {strength: objective.loss(scores) for strength, scores in found.items()}
    best = min(strengths, key=lambda strength: losses[strength])

    def as_good(strength: float) -> bool:
        excess = objective.of_rows(found[strength]) - objective.of_rows(found[best])
        return losses[strength][:-1] == losses[best][:-1] and excess.mean() <= excess.std() / np.sqrt(count)

    return max(filter(as_good, strengths))
