"""Cascades: a row leaves at the first stage whose answer is sure enough.

A later stage replaces the answer (Viola and Jones 2001; Wang et al. 2021, https://arxiv.org/abs/2012.01988)
or is averaged with it.
"""

from __future__ import annotations

from itertools import takewhile

import numpy as np
import numpy.typing as npt

from orchestrator.config.ensemble import Cascade, Member, Node, leaves, walk_nodes
from orchestrator.config.guarantee import Certificate
from orchestrator.config.signature import Task
from orchestrator.ensemble import quorum
from orchestrator.ensemble.certainty import certainty
from orchestrator.ensemble.combine import Floats, Rows, pool
from orchestrator.ensemble.guarantee import certify
from orchestrator.ensemble.node import (
    Answer,
    Ground,
    Steps,
    answer,
    answer_uncalibrated,
    fit_all,
    fit_uncalibrated,
    identity,
)
from orchestrator.ensemble.thresholds import (
    ALL_LEAVE,
    Aim,
    Stages,
    Thresholds,
    path,
    until_cost,
    within_tolerance,
)
from orchestrator.errors import EnsembleError, QuorumError


def check_task(task: Task) -> None:
    """Refuse what a cascade cannot do.

    Raises:
        EnsembleError: the task is regression, whose outputs carry no certainty.
    """
    if task == "regression":
        raise EnsembleError(
            "a cascade needs a classifier's confidence", task, "use parallel or weighted_mix instead"
        )


def combined(node: Cascade, before: Floats, later: Floats, stages: int, task: Task) -> Floats:
    """The answer after one more stage, from that of so many `stages` before it and its own scores."""
    if node.combine == "replace" or not stages:
        return later
    share = 1 / (stages + 1)
    return pool([before, later], (1 - share, share), task)


@answer_uncalibrated.register
def _answer(node: Cascade, rows: Rows, task: Task) -> Steps:
    check_task(task)
    if node.thresholds is None:
        raise EnsembleError("sequential has no thresholds", None, "fit the ensemble first")
    scores, stages = np.zeros((len(rows), 0)), np.zeros(len(rows), dtype=np.int64)
    open_rows = np.arange(len(rows))
    lost: dict[int, QuorumError] = {}
    for position, threshold in enumerate((*node.thresholds, ALL_LEAVE)):
        try:
            found = yield from answer(node.stages[position], rows[open_rows], task)
        except QuorumError as error:
            # Its rows go on to the next stage, or keep their last answer.
            lost[position] = error
            quorum.check(node.stages, node.quorum, lost)
            continue
        if not scores.size:
            scores = np.zeros((len(rows), found.scores.shape[1]))
        now = combined(node, scores[open_rows], found.scores, position - len(lost), task)
        scores[open_rows], stages[open_rows] = now, position
        if position == len(node.thresholds):
            break
        open_rows = open_rows[certainty(node.criterion, now, found.agreement, task) < threshold]
        if not len(open_rows):
            break
    return Answer(scores, stages)


@fit_uncalibrated.register
def _fit(node: Cascade, ground: Ground) -> Node:
    check_task(ground.task)
    fitted = node.model_copy(update={"stages": fit_all(node.stages, ground)})
    if fitted.thresholds is not None:
        return fitted
    thresholds, certificate = _thresholds(fitted, ground)
    return fitted.model_copy(update={"thresholds": thresholds, "certificate": certificate})


def _thresholds(node: Cascade, ground: Ground) -> tuple[Thresholds, Certificate | None]:
    stages = _stages(node, ground)
    aim = Aim(stages, ground.metric, node.tolerance or 0.0, allowed=ground.allowed)
    if node.max_cost is None and node.guarantee is None:
        return within_tolerance(aim), None
    steps = path(stages)
    if node.tolerance is not None:
        steps = list(takewhile(lambda step: aim.keeps(stages.left_at(step)), steps))
    if node.max_cost is not None:
        if ground.cost is None:
            raise EnsembleError("max_cost needs the members' costs", node.max_cost, "give fit their costs")
        steps = until_cost(steps, stages, node.max_cost)
        share = stages.cost_share(stages.left_at(steps[-1]))
        if share > node.max_cost and node.tolerance is None and node.guarantee is None:
            raise EnsembleError(
                "the first stage alone costs more than max_cost allows",
                f"{share:.3g} of the whole cascade, allowed {node.max_cost:g}",
                "allow more, or begin with a cheaper stage",
            )
    if node.guarantee is None:
        return steps[-1], None
    return certify(steps, _stages(node, _unseen(node, ground)), node.guarantee)


def _unseen(node: Cascade, ground: Ground) -> Ground:
    """The calibration rows, if nothing in the cascade was fitted on them."""
    if ground.unseen is None:
        raise EnsembleError(
            "a guarantee needs rows that nothing was fitted on", "no calibration rows", "give them to fit"
        )
    if any(isinstance(below, Cascade) and below.certificate for below in walk_nodes(node)):
        raise EnsembleError(
            "a cascade with a guarantee holds another one",
            "both would be certified on the same calibration rows",
            "give the inner one a tolerance instead",
        )
    return ground.unseen


def _stages(node: Cascade, ground: Ground) -> Stages:
    """What the fitted stages say to the rows of `ground`, and what each costs beside those before it."""
    scores: list[Floats] = []
    sure: list[Floats] = []
    costs: list[Floats] = []
    asked = {member: np.zeros(len(ground.targets), dtype=bool) for member in map(identity, leaves(node))}
    prices = {identity(member): _price(member, ground) for member in leaves(node)}
    for position, stage in enumerate(node.stages):
        found, masks = _replayed(stage, ground)
        before = scores[-1] if scores else found.scores
        scores.append(combined(node, before, found.scores, position, ground.task))
        if position < len(node.stages) - 1:
            sure.append(certainty(node.criterion, scores[-1], found.agreement, ground.task))
        for member, mask in masks.items():
            asked[member] |= mask
        costs.append(np.asarray(sum(prices[member] * mask for member, mask in asked.items())))
    return Stages(tuple(scores), np.stack(sure), np.stack(costs), ground.targets, ground.task)


def _price(member: Member, ground: Ground) -> float:
    """What a row costs; members of unknown cost count alike."""
    return 1.0 if ground.cost is None else ground.cost(member)


def _replayed(node: Node, ground: Ground) -> tuple[Answer, dict[tuple[str, str], npt.NDArray[np.bool_]]]:
    """A node's answer to every row of `ground`, and which rows each member is asked for."""
    rows = len(ground.targets)
    masks: dict[tuple[str, str], npt.NDArray[np.bool_]] = {}
    steps = answer(node, np.arange(rows), ground.task)
    asks = next(steps)
    while True:
        for ask in asks:
            masks.setdefault(identity(ask.member), np.zeros(rows, dtype=bool))[ask.rows] = True
        try:
            asks = steps.send(tuple(ground.outputs[identity(ask.member)][ask.rows] for ask in asks))
        except StopIteration as done:
            found: Answer = done.value
            return found, masks
