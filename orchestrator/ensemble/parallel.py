"""All members answer every row, and a fixed rule makes one answer of theirs."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.config.ensemble import Node, Parallel
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats, check_rule, pool
from orchestrator.ensemble.node import Ground, Rows, Steps, answer, at_once, fit_all, fit_node, together
from orchestrator.ensemble.weights import Weights, vote_weights
from orchestrator.errors import EnsembleError


@answer.register
def _answer(node: Parallel, rows: Rows, task: Task) -> Steps:
    if (missing := node.unfitted()) is not None:
        raise EnsembleError(missing, None, "fit the ensemble first")
    parts = yield from together([answer(member, rows, task) for member in node.members])
    return at_once(pooled(node, parts, node.weights, task))


def pooled(node: Parallel, scores: Sequence[Floats], weights: Weights | None, task: Task) -> Floats:
    """Scores [N, K] of the node from those of all its members, or of some with the weights of those.

    Raises:
        EnsembleError: the rule is not for this task, or takes no weights.
    """
    return pool(scores, weights, task, node.rule, node.trim)


@fit_node.register
def _fit(node: Parallel, ground: Ground) -> Node:
    check_rule(node.rule, ground.task)
    members, weights = fit_all(node.members, ground), node.weights
    if node.rule == "weighted_vote" and weights is None:
        weights = vote_weights([ground.scores(member) for member in members], ground.targets)
    return node.model_copy(update={"members": members, "weights": weights})
