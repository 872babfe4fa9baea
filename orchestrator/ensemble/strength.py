"""How strongly fitted numbers are pulled towards simple ones: chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from orchestrator.ensemble.combine import Floats, Rows
from orchestrator.ensemble.folds import FOLDS, cross_validated
from orchestrator.ensemble.objective import Objective
from orchestrator.ensemble.weights import Weights

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
