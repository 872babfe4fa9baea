"""Boosting: the sum of stages of which each was trained on what the sum before it got wrong.

Here are the sum, the step along a new stage and what is done without some stages; the pipeline trains
(`pipeline/boosting.py`). (Friedman 2001, Greedy function approximation: a gradient boosting machine.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from orchestrator.config.calibration import Survivors
from orchestrator.config.data import PartName
from orchestrator.config.ensemble import Boosting, Node
from orchestrator.config.signature import Task
from orchestrator.ensemble import quorum
from orchestrator.ensemble.combine import Floats, Rows, scores_of
from orchestrator.ensemble.node import (
    Ground,
    Output,
    Steps,
    answer,
    answer_uncalibrated,
    at_once,
    fit_survivors,
    fit_uncalibrated,
    together,
)
from orchestrator.ensemble.objective import Objective
from orchestrator.ensemble.pooled import temperature_before
from orchestrator.errors import EnsembleError, QuorumError
from orchestrator.measure.metrics import log_softmax
from orchestrator.measure.tasks import rules

DIGITS = 6
"""Of factors and losses that are kept."""


def boosted(stages: Sequence[Floats], factors: Sequence[float], task: Task) -> Floats:
    """Scores [N, K] of the sum of stages [N, K], each times its factor.

    Log-probabilities are logits less one number a row, which changes no probability of the sum.
    """
    total = np.zeros_like(stages[0])
    for stage, factor in zip(stages, factors, strict=True):
        total += factor * stage
    return rules(task).normalized(total)


@dataclass(frozen=True, eq=False)
class Progress:
    """The sum of the stages so far on the rows of one part."""

    total: Floats
    """[N, K] logits but for one number a row, or values."""
    objective: Objective

    @classmethod
    def of(cls, first: Output, targets: npt.NDArray[Any], task: Task) -> Progress:
        """After the first stage with these raw outputs [N, K]."""
        return cls(scores_of(first, task), Objective(targets, task))

    def after(self, stage: Output, factor: float) -> Progress:
        """With one more stage."""
        return Progress(boosted([self.total, self._own(stage)], (1.0, factor), self._task), self.objective)

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, or mean squared error in units of the targets' deviations."""
        return float(self.objective.of_rows(self.total).mean())

    def step(self, stage: Output, longest: float = 1.0) -> float:
        """The factor from 0 to `longest` of a further stage that leads to the least loss, which is convex in
        it; 0 when no factor makes it smaller."""

        def loss(factor: float) -> float:
            return self.after(stage, factor).loss

        found = minimize_scalar(loss, bounds=(0.0, longest), method="bounded", options={"xatol": 1e-5})
        return min((0.0, round(float(found.x), DIGITS), longest), key=loss)

    def _own(self, stage: Output) -> Floats:
        return scores_of(stage, self._task)

    @property
    def _task(self) -> Task:
        return self.objective.task


def next_factor(
    stage: Mapping[PartName, Output], so_far: Mapping[PartName, Progress], shrinkage: float | None
) -> float:
    """What a new stage counts: 0 when it helps neither train nor (without a shrinkage) validation rows.

    A step towards the least training loss makes that loss smaller however short it is, since it is convex.

    Args:
        stage: Raw outputs of the new stage by part, `train` and `validation`.
        so_far: The sum before it by part.
        shrinkage: Share of the step of least training loss; None: the step of least validation loss, but no
            longer than that.
    """
    longest = so_far["train"].step(stage["train"])
    if longest == 0 or shrinkage is not None:
        return round(longest * (shrinkage or 0.0), DIGITS)
    return so_far["validation"].step(stage["validation"], longest)


@answer_uncalibrated.register
def _answer(node: Boosting, rows: Rows, task: Task) -> Steps:
    """A stage that is missing takes those after it with it: they correct a sum that is not there."""
    if (missing := node.unfitted()) is not None:
        raise EnsembleError(missing, node.base, "train the ensemble first")

    def check(lost: Mapping[int, QuorumError]) -> None:
        first = min(lost)
        useless = dict.fromkeys(range(first, len(node.members)), lost[first])
        quorum.check(node.members, node.quorum, {**useless, **lost})

    parts = yield from together([answer(member, rows, task) for member in node.members], check)
    leading = [parts[place] for place in range(len(node.members)) if set(range(place + 1)) <= parts.keys()]
    return at_once(_first_stages(node, leading, task))


def _first_stages(node: Boosting, scores: Sequence[Floats], task: Task) -> Floats:
    """The answer of as many first stages as there are scores, with the temperature for exactly these."""
    assert node.factors is not None
    total = boosted(scores, node.factors[: len(scores)], task)
    missing = tuple(range(len(scores), len(node.members)))
    known = next((found for found in node.survivors if found.without == missing), None)
    return total if known is None else log_softmax(total / known.temperature)


@fit_uncalibrated.register
def _fit(node: Boosting, ground: Ground) -> Node:
    """Stages were trained on the sum of their very outputs, so these are not divided by a temperature."""
    if (missing := node.unfitted()) is not None:
        raise EnsembleError(missing, node.base, "train the ensemble first")
    if ground.task == "regression":
        return node
    stages = tuple(member.model_copy(update={"temperature": 1.0}) for member in node.members)
    return node.model_copy(update={"members": stages})


@fit_survivors.register
def _fit_survivors(fitted: Boosting, given: Boosting, ground: Ground) -> Node:  # noqa: ARG001
    """For each number of first stages that the quorum allows a temperature, if the node is calibrated."""
    if fitted.quorum is None or fitted.calibration is None or fitted.survivors:
        return fitted
    scores = [ground.scores(member) for member in fitted.members]
    count, found = len(scores), []
    for left in range(1, count):
        missing = tuple(range(left, count))
        if quorum.tolerates(fitted.members, fitted.quorum, missing):
            total = _first_stages(fitted, scores[:left], ground.task)
            temperature = temperature_before(fitted, total, ground)
            found.append(Survivors(without=missing, weights=None, temperature=temperature))
    return fitted.model_copy(update={"survivors": tuple(found)})
