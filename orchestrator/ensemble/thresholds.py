"""Where rows leave a cascade: thresholds that were seen to keep a metric, or to stay within a cost."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.measure import Metric
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats
from orchestrator.measure.metrics import larger_is_better, score
from orchestrator.measure.tasks import class_rules

ALL_LEAVE = 0.0
"""Threshold below every certainty: no row goes on."""
NONE_LEAVES = 2.0
"""Threshold above every certainty (infinity is not JSON): every row goes on."""
MOST_CANDIDATES = 512
"""Thresholds tried for a stage; with more distinct certainties, evenly spread ranks among them."""
PATH_CANDIDATES = 128
"""The same for a step of a path: each lets at least about one row in a hundred more leave."""

Thresholds = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Stages:
    """What the S stages of a cascade say to N rows."""

    scores: tuple[Floats, ...]
    """S times [N, K]: the answer to a row that leaves at this stage."""
    certainty: Floats
    """[S - 1, N] of every stage but the last."""
    cost: Floats
    """[S, N] what a row costs that leaves at this stage; the unit does not matter."""
    targets: npt.NDArray[Any]
    task: Task = "classification"

    @cached_property
    def lost(self) -> npt.NDArray[np.bool_]:
        """[S, N]: the last stage is right (in every label) and this one is wrong."""
        right = class_rules(self.task).right(np.stack(self.scores), self.targets)
        return np.asarray(right[-1] & ~right)

    def left_at(self, thresholds: Thresholds) -> npt.NDArray[np.intp]:
        """[N] the stage that each row leaves at."""
        left = np.full(len(self.targets), len(thresholds))
        for stage in reversed(range(len(thresholds))):
            left[self.certainty[stage] >= thresholds[stage]] = stage
        return left

    def answers(self, left: npt.NDArray[np.intp]) -> Floats:
        """[N, K] the cascade's answer to rows that leave at these stages."""
        return np.stack(self.scores)[left, np.arange(len(left))]

    def lost_rows(self, left: npt.NDArray[np.intp]) -> int:
        """How many rows lose the last stage's right answer by leaving there."""
        return int(np.count_nonzero(self.lost[left, np.arange(len(left))]))

    def cost_share(self, left: npt.NDArray[np.intp]) -> float:
        """Mean cost over that without early exits."""
        return float(self.cost[left, np.arange(len(left))].sum() / self.cost[-1].sum())


def candidates(observed: Floats, most: int = MOST_CANDIDATES) -> list[float]:
    """Thresholds worth trying, rising: `ALL_LEAVE`, midpoints of neighbouring certainties, `NONE_LEAVES`.

    A midpoint keeps away from the observed rows, so that rounding in another placement moves none of
    them to the other side.
    """
    values = np.unique(observed)
    middles = (values[:-1] + values[1:]) / 2
    # The midpoint of two adjacent floats is one of them; such a pair cannot be told apart safely.
    middles = middles[(middles > values[:-1]) & (middles < values[1:])]
    if len(middles) > most:
        middles = middles[np.linspace(0, len(middles) - 1, most).round().astype(int)]
    return [ALL_LEAVE, *middles.tolist(), NONE_LEAVES]


class Aim:
    """What validation rows may lose: two conditions on the rows' stages.

    The metric stays within `tolerance` of the last stage's, and of the rows that the last stage answers
    right no larger share than `tolerance` is answered wrong by leaving early. The second gives no credit for
    rows that happen to be won: on few rows such luck would let everything leave at once.
    """

    def __init__(
        self, stages: Stages, metric: Metric, tolerance: float, *, allowed: Collection[str] = ()
    ) -> None:
        self.stages, self.metric, self.allowed = stages, metric, allowed
        # A hair of slack: the same rows summed in another order must not count as a loss.
        self.most = tolerance + 1e-12
        self.least = self.signed(stages.scores[-1]) - self.most

    def signed(self, answers: Floats) -> float:
        """The metric, negated where smaller is better."""
        value = score(self.metric, answers, self.stages.targets, allowed=self.allowed)
        return value if larger_is_better(self.metric) else -value

    def keeps(self, left: npt.NDArray[np.intp]) -> bool:
        """Whether both hold when rows leave at these stages."""
        if self.stages.lost_rows(left) > self.most * len(left):
            return False
        return self.signed(self.stages.answers(left)) >= self.least


def within_tolerance(aim: Aim) -> Thresholds:
    """Thresholds of least expected cost that keep what `aim` says.

    Stages are fitted front to back. For each, the rows that do not leave are taken to go to the last
    stage; a lower threshold lets more rows leave and so costs less whatever the stages cost, hence the
    lowest one that keeps the aim is the cheapest. With two stages this is the optimum over all
    candidates; with more it is greedy.
    """
    last = len(aim.stages.scores) - 1
    left = np.full(len(aim.stages.targets), last)
    thresholds: list[float] = []
    for stage in range(last):
        sure, open_rows = aim.stages.certainty[stage], left == last
        chosen = NONE_LEAVES
        for threshold in candidates(sure[open_rows]) if open_rows.any() else [ALL_LEAVE]:
            trial = np.where(open_rows & (sure >= threshold), stage, left)
            if aim.keeps(trial):
                chosen, left = threshold, trial
                break
        thresholds.append(chosen)
    return tuple(thresholds)


def path(stages: Stages) -> list[Thresholds]:
    """Thresholds from "no row leaves early" to "all leave at once", each step lowering one of them.

    The next step is the one with the fewest rows lost, over all that leave there, for what each saves.
    Between steps that lose as many, the doubt (1 - certainty) of those rows decides. With two stages this
    is the falling list of candidates.
    """
    rows, last = len(stages.targets), len(stages.scores) - 1
    saved = (stages.cost[-1] - stages.cost).mean(axis=1)
    steps: list[tuple[float, int, float]] = []
    for stage in range(last):
        sure, lost = stages.certainty[stage], stages.lost[stage]
        order = np.argsort(-sure, kind="stable")
        risk = np.append(0.0, np.cumsum(lost[order] + (1 - sure[order]) / rows))
        for threshold in candidates(sure, PATH_CANDIDATES)[-2::-1]:
            leaving = int(np.count_nonzero(sure >= threshold))
            steps.append((risk[leaving] / max(saved[stage], 1e-12), stage, threshold))
    found: list[Thresholds] = [(NONE_LEAVES,) * last]
    # Sorting is stable, and the risk of a stage's steps rises: no stage's steps change places.
    for _, stage, threshold in sorted(steps, key=lambda step: step[0]):
        found.append((*found[-1][:stage], threshold, *found[-1][stage + 1 :]))
    return found


def until_cost(steps: Sequence[Thresholds], stages: Stages, max_cost: float) -> list[Thresholds]:
    """The path up to the first step whose mean cost is at most the share `max_cost`; all of it if none is.

    That step is the most careful of those that are cheap enough. A further one may score better on the rows
    at hand, but it does so by rows that happened to be won.
    """
    found: list[Thresholds] = []
    for step in steps:
        found.append(step)
        if stages.cost_share(stages.left_at(step)) <= max_cost:
            break
    return found
