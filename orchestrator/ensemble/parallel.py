"""All members answer every row, and count alike."""

from __future__ import annotations

from orchestrator.config.ensemble import Node, Parallel
from orchestrator.config.signature import Task
from orchestrator.ensemble.certainty import agreement_of
from orchestrator.ensemble.combine import pool
from orchestrator.ensemble.node import Ground, Rows, Steps, answer, at_once, fit_all, fit_node, together


@answer.register
def _answer(node: Parallel, rows: Rows, task: Task) -> Steps:
    parts = yield from together([answer(member, rows, task) for member in node.members])
    scores = pool(parts, None, task)
    return at_once(scores, agreement_of(parts, scores, None, task))


@fit_node.register
def _fit(node: Parallel, ground: Ground) -> Node:
    return node.model_copy(update={"members": fit_all(node.members, ground)})
