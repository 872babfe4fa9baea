"""Stacking: all members answer every row, and a meta-learner that saw their answers makes one of them."""

from __future__ import annotations

import numpy as np

from orchestrator.config.ensemble import Node, Stacking
from orchestrator.config.signature import Task
from orchestrator.ensemble.certainty import agreement_of
from orchestrator.ensemble.meta import best_strength, fit_meta, meta_answer, out_of_fold
from orchestrator.ensemble.node import Ground, Rows, Steps, answer, at_once, fit_all, fit_node, together
from orchestrator.errors import EnsembleError
from orchestrator.measure.metrics import score


@answer.register
def _answer(node: Stacking, rows: Rows, task: Task) -> Steps:
    if node.coefficients is None:
        raise EnsembleError("stacking has no coefficients", None, "fit the ensemble first")
    parts = yield from together([answer(member, rows, task) for member in node.members])
    scores = meta_answer(parts, np.array(node.coefficients), task)
    return at_once(scores, agreement_of(parts, scores, None, task))


@fit_node.register
def _fit(node: Stacking, ground: Ground) -> Node:
    fitted = node.model_copy(update={"members": fit_all(node.members, ground)})
    if fitted.coefficients is not None:
        return fitted
    parts = [ground.scores(member) for member in fitted.members]
    strength = node.strength or best_strength(parts, ground.targets, ground.task)
    unseen = out_of_fold(parts, ground.targets, ground.task, strength)
    found = fit_meta(parts, ground.targets, ground.task, strength)
    return fitted.model_copy(
        update={
            "strength": strength,
            "coefficients": tuple(tuple(row) for row in found.tolist()),
            "out_of_fold": score(ground.metric, unseen, ground.targets, allowed=ground.allowed),
        }
    )
