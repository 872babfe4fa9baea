"""All members answer every row, and a fixed rule makes one answer of theirs."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.config.ensemble import Node, Parallel
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats, check_rule, pool
from orchestrator.ensemble.node import Ground, fit_all, fit_uncalibrated
from orchestrator.ensemble.pooled import fit_weights, pooled
from orchestrator.ensemble.weights import Weights, vote_weights


@pooled.register
def _pooled(node: Parallel, scores: Sequence[Floats], weights: Weights | None, task: Task) -> Floats:
    return pool(scores, weights, task, node.rule, node.trim)


@fit_weights.register
def _weights(node: Parallel, scores: Sequence[Floats], ground: Ground) -> Weights | None:
    return vote_weights(scores, ground.targets) if node.rule == "weighted_vote" else None


@fit_uncalibrated.register
def _fit(node: Parallel, ground: Ground) -> Node:
    check_rule(node.rule, ground.task)
    members, weights = fit_all(node.members, ground), node.weights
    if weights is None:
        weights = fit_weights(node, [ground.scores(member) for member in members], ground)
    return node.model_copy(update={"members": members, "weights": weights})
