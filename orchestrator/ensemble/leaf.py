"""The leaf: one artifact's outputs, brought to one scale of confidence."""

from __future__ import annotations

from orchestrator.config.ensemble import Member, Node
from orchestrator.config.signature import Task
from orchestrator.ensemble.calibrate import fit_temperature
from orchestrator.ensemble.combine import Rows, scores_of
from orchestrator.ensemble.node import (
    Ask,
    Ground,
    Steps,
    answer_uncalibrated,
    at_once,
    fit_uncalibrated,
    identity,
)
from orchestrator.errors import QuorumError


@answer_uncalibrated.register
def _answer(node: Member, rows: Rows, task: Task) -> Steps:
    (reply,) = yield (Ask(node, rows),)
    if isinstance(reply, QuorumError):
        raise reply
    return at_once(scores_of(reply, task, node.temperature))


@fit_uncalibrated.register
def _fit(node: Member, ground: Ground) -> Node:
    if ground.task == "regression" or node.temperature is not None:
        return node
    temperature = fit_temperature(ground.outputs[identity(node)], ground.targets)
    return node.model_copy(update={"temperature": temperature})
