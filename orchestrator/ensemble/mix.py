"""All members answer every row, each with its weight."""

from __future__ import annotations

import numpy as np

from orchestrator.config.ensemble import Node, WeightedMix
from orchestrator.config.signature import Task
from orchestrator.ensemble.certainty import agreement_of
from orchestrator.ensemble.combine import pool
from orchestrator.ensemble.node import Ground, Rows, Steps, answer, at_once, fit_all, fit_node, together
from orchestrator.ensemble.weights import likelihood_weights, squared_error_weights
from orchestrator.errors import EnsembleError


@answer.register
def _answer(node: WeightedMix, rows: Rows, task: Task) -> Steps:
    if node.weights is None:
        raise EnsembleError("weighted_mix has no weights", None, "fit the ensemble first")
    parts = yield from together([answer(member, rows, task) for member in node.members])
    scores = pool(parts, node.weights, task)
    return at_once(scores, agreement_of(parts, scores, node.weights, task))


@fit_node.register
def _fit(node: WeightedMix, ground: Ground) -> Node:
    members = fit_all(node.members, ground)
    weights = node.weights
    if weights is None:
        scores = [ground.scores(member) for member in members]
        if ground.task == "classification":
            weights = likelihood_weights(scores, ground.targets)
        else:
            weights = squared_error_weights(scores, ground.targets.astype(np.float64))
    return node.model_copy(update={"members": members, "weights": weights})
