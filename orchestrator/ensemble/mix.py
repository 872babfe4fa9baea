"""All members answer every row, each with its weight: fixed, one for each class, or chosen by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.config.ensemble import Node, WeightedMix
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats, pool
from orchestrator.ensemble.gate import fit_gate, gated
from orchestrator.ensemble.greedy import greedy_weights
from orchestrator.ensemble.node import Ground, fit_all, fit_uncalibrated
from orchestrator.ensemble.objective import Objective
from orchestrator.ensemble.per_class import by_class, fit_class_weights
from orchestrator.ensemble.pooled import fit_weights, pooled
from orchestrator.ensemble.weights import Weights, shared_weights, squared_error_weights
from orchestrator.errors import EnsembleError


@pooled.register
def _pooled(node: WeightedMix, scores: Sequence[Floats], weights: Weights | None, task: Task) -> Floats:
    """Class weights and a gate are for all members together: without some, the others have weights that are
    alike for all rows and classes."""
    complete = len(scores) == len(node.members)
    if complete and node.class_weights is not None:
        return by_class(np.stack(scores), np.array(node.class_weights), task)
    if complete and node.gate is not None:
        return gated(np.stack(scores), np.array(node.gate), task)
    return pool(scores, weights, task)


@fit_weights.register
def _weights(node: WeightedMix, scores: Sequence[Floats], ground: Ground) -> Weights:
    """Alike for all rows and classes."""
    objective = _objective(node, ground)
    if node.method == "greedy":
        return greedy_weights(*objective.additive(scores), node.rounds, node.bags)
    if node.method == "squared_error":
        return squared_error_weights(scores, objective.truth, ground.task)
    if node.prior is not None and ground.task == "regression":
        raise EnsembleError("the prior of a weighted mix belongs to classification; the task is", ground.task)
    return shared_weights(scores, objective.truth, ground.task, node.prior or 0)


@fit_uncalibrated.register
def _fit(node: WeightedMix, ground: Ground) -> Node:
    members = fit_all(node.members, ground)
    fitted = node.model_copy(update={"members": members})
    if fitted.unfitted() is None:
        return fitted
    scores = [ground.scores(member) for member in members]
    if node.method == "per_class":
        classes = fit_class_weights(scores, _objective(node, ground), node.weights, node.strength)
        more = {"weights": classes.shared, "strength": classes.strength, "class_weights": classes.fitted}
    elif node.method == "gate":
        gate = fit_gate(scores, _objective(node, ground), node.weights, node.strength)
        more = {"weights": gate.shared, "strength": gate.strength, "gate": gate.fitted}
    else:
        more = {"weights": fit_weights(node, scores, ground)}
    return fitted.model_copy(update=more)


def _objective(node: WeightedMix, ground: Ground) -> Objective:
    metric = ground.metric if node.objective == "metric" else None
    return Objective(ground.targets, ground.task, metric, ground.allowed)
