"""The leaf: one artifact's outputs, brought to one scale of confidence."""

from __future__ import annotations

from collections.abc import Generator

from orchestrator.config.ensemble import Member, Node
from orchestrator.config.signature import Task
from orchestrator.ensemble.calibrate import fit_temperature
from orchestrator.ensemble.combine import Rows, scores_of
from orchestrator.ensemble.node import (
    Ask,
    Ground,
    Output,
    Reply,
    Steps,
    answer_uncalibrated,
    at_once,
    fit_uncalibrated,
    identity,
)
from orchestrator.ensemble.sight import told
from orchestrator.errors import QuorumError
from orchestrator.measure.tasks import class_rules


@answer_uncalibrated.register
def _answer(node: Member, rows: Rows, task: Task) -> Steps:
    output = yield from _outputs(node, rows, task)
    return at_once(scores_of(output, task, node.temperature))


def _outputs(node: Member, rows: Rows, task: Task) -> Generator[tuple[Ask, ...], tuple[Reply, ...], Output]:
    """Its raw outputs [n, K], after those of all that it sees; who sees a missing one is missing, too."""
    seen = None
    if node.sees:
        first = [member for member in node.sees if not member.sees]
        replies = yield tuple(Ask(member, rows) for member in first)
        said = dict(zip(map(identity, first), map(_sound, replies), strict=True))
        for member in node.sees:
            if member.sees:
                said[identity(member)] = yield from _outputs(member, rows, task)
        seen = told([said[identity(member)] for member in node.sees], task)
    (reply,) = yield (Ask(node, rows, seen),)
    return _sound(reply)


def _sound(reply: Reply) -> Output:
    if isinstance(reply, QuorumError):
        raise reply
    return reply


@fit_uncalibrated.register
def _fit(node: Member, ground: Ground) -> Node:
    if ground.task == "regression" or node.temperature is not None:
        return node
    kind = class_rules(ground.task)
    outputs = kind.as_classes(ground.outputs[identity(node)])
    temperature = fit_temperature(outputs, kind.classes(ground.targets))
    return node.model_copy(update={"temperature": temperature})
