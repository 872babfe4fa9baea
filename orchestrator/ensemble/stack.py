"""Stacking: all members answer every row, and a meta-learner that saw their answers makes one of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.config.ensemble import Node, Stacking
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.meta import best_strength, fit_meta, mean_answer, meta_answer, out_of_fold
from orchestrator.ensemble.node import Ground, fit_all, fit_uncalibrated
from orchestrator.ensemble.pooled import pooled
from orchestrator.ensemble.weights import Weights
from orchestrator.errors import EnsembleError
from orchestrator.measure.metrics import statistic


@pooled.register
def _pooled(node: Stacking, scores: Sequence[Floats], _: Weights | None, task: Task) -> Floats:
    """The meta-learner is for all members together: without some, the mean of the others answers, which is
    what the meta-learner was drawn towards."""
    if len(scores) < len(node.members):
        return mean_answer(scores, task)
    return meta_answer(scores, np.array(node.coefficients), task)


@fit_uncalibrated.register
def _fit(node: Stacking, ground: Ground) -> Node:
    fitted = node.model_copy(update={"members": fit_all(node.members, ground)})
    if fitted.coefficients is not None:
        return fitted
    seen = ground if node.folds is None else ground.folded
    if seen is None:
        raise EnsembleError(
            "a stack with folds needs what members trained without them say of them",
            node.folds,
            "let it stand in the run file under a name of its own",
        )
    parts = [seen.scores(member) for member in fitted.members]
    strength = node.strength or best_strength(parts, seen.targets, seen.task)
    unseen = out_of_fold(parts, seen.targets, seen.task, strength)
    found = fit_meta(parts, seen.targets, seen.task, strength)
    worth = statistic(seen.metric, unseen, seen.targets, allowed=seen.allowed)(np.ones(len(seen.targets)))
    return fitted.model_copy(
        update={
            "strength": strength,
            "coefficients": tuple(tuple(row) for row in found.tolist()),
            # Not told where it is undefined: of rows without a positive.
            "out_of_fold": worth if np.isfinite(worth) else None,
        }
    )
