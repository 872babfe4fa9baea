"""All members answer every row, and count alike."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.config.ensemble import Node, Parallel
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats, pool
from orchestrator.ensemble.node import Ground, fit_all, fit_uncalibrated
from orchestrator.ensemble.pooled import Weights, pooled


@pooled.register
def _pooled(_: Parallel, scores: Sequence[Floats], weights: Weights, task: Task) -> Floats:
    return pool(scores, weights, task)


@fit_uncalibrated.register
def _fit(node: Parallel, ground: Ground) -> Node:
    return node.model_copy(update={"members": fit_all(node.members, ground)})
