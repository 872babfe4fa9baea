"""All members answer every row, and a fixed rule makes one answer of theirs."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.config.ensemble import Node, Parallel
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats, check_rule, pool, remaining
from orchestrator.ensemble.node import Ground, Rows, Steps, answer, at_once, fit_all, fit_node, together
from orchestrator.ensemble.weights import vote_weights
from orchestrator.errors import EnsembleError


def pooled(node: Parallel, scores: Sequence[Floats | None], task: Task) -> Floats:
    """The node's scores [N, K] from those of its members; None for a member that gave none.

    Raises:
        EnsembleError: the node is not fitted, or its rule is not for this task.
    """
    if (missing := node.unfitted()) is not None:
        raise EnsembleError(missing, None, "fit the ensemble first")
    present = [position for position, found in enumerate(scores) if found is not None]
    weights = None if node.weights is None else remaining(node.weights, present)
    given = [found for found in scores if found is not None]
    return pool(given, weights, task, node.rule, node.trim)


@answer.register
def _answer(node: Parallel, rows: Rows, task: Task) -> Steps:
    parts = yield from together([answer(member, rows, task) for member in node.members])
    return at_once(pooled(node, parts, task))


@fit_node.register
def _fit(node: Parallel, ground: Ground) -> Node:
    check_rule(node.rule, ground.task)
    members, weights = fit_all(node.members, ground), node.weights
    if node.rule == "weighted_vote" and weights is None:
        weights = vote_weights([ground.scores(member) for member in members], ground.targets)
    return node.model_copy(update={"members": members, "weights": weights})
