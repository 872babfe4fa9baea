"""All members answer every row, each with its weight: fixed, one for each class, or chosen by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from orchestrator.config.ensemble import Node, WeightedMix
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats, mixture, remaining
from orchestrator.ensemble.gate import fit_gate, gated
from orchestrator.ensemble.greedy import greedy_weights
from orchestrator.ensemble.node import Ground, Rows, Steps, answer, at_once, fit_all, fit_node, together
from orchestrator.ensemble.objective import Objective
from orchestrator.ensemble.per_class import by_class, fit_class_weights
from orchestrator.ensemble.weights import likelihood_weights, squared_error_weights
from orchestrator.errors import EnsembleError


def mixed(node: WeightedMix, scores: Sequence[Floats | None], task: Task) -> Floats:
    """The node's scores [N, K] from those of its members; None for a member that gave none.

    The weights of the members that are left are scaled to sum to 1 again.

    Raises:
        EnsembleError: the node is not fitted.
    """
    if (missing := node.unfitted()) is not None:
        raise EnsembleError(missing, None, "fit the ensemble first")
    present = [position for position, found in enumerate(scores) if found is not None]
    stacked = np.stack([found for found in scores if found is not None])
    if node.class_weights is not None:
        columns = [remaining(column, present) for column in zip(*node.class_weights, strict=True)]
        return by_class(stacked, np.array(columns).T, task)
    if node.gate is not None:
        return gated(stacked, np.array([node.gate[position] for position in present]), task)
    assert node.weights is not None
    shares = np.array(remaining(node.weights, present))
    return mixture(stacked, shares[:, None, None], task)


@answer.register
def _answer(node: WeightedMix, rows: Rows, task: Task) -> Steps:
    parts = yield from together([answer(member, rows, task) for member in node.members])
    return at_once(mixed(node, parts, task))


@fit_node.register
def _fit(node: WeightedMix, ground: Ground) -> Node:
    fitted = node.model_copy(update={"members": fit_all(node.members, ground)})
    if fitted.unfitted() is None:
        return fitted
    scores = [ground.scores(member) for member in fitted.members]
    metric = ground.metric if node.objective == "metric" else None
    return fitted.model_copy(
        update=fit_weights(node, scores, Objective(ground.targets, ground.task, metric, ground.allowed))
    )


def fit_weights(node: WeightedMix, scores: Sequence[Floats], objective: Objective) -> dict[str, Any]:
    """What the node's method fits, by key; given values are kept.

    Args:
        node: Its settings; the members do not matter.
        scores: One array [N, K] a member, on validation rows.
        objective: On the same rows; what `greedy` selects by, and `per_class` and `gate` are chosen by.
    """
    if node.method == "per_class":
        found = fit_class_weights(scores, objective, node.weights, node.strength)
        return {"weights": found.shared, "strength": found.strength, "class_weights": found.fitted}
    if node.method == "gate":
        found = fit_gate(scores, objective, node.weights, node.strength)
        return {"weights": found.shared, "strength": found.strength, "gate": found.fitted}
    if node.method == "greedy":
        return {"weights": greedy_weights(*objective.additive(scores), node.rounds, node.bags)}
    if node.method == "likelihood" and objective.task == "classification":
        return {"weights": likelihood_weights(scores, objective.truth)}
    return {"weights": squared_error_weights(scores, objective.truth, objective.task)}
