"""Cascades: a row leaves at the first stage that is confident enough.

Confidence is the stage's top probability, and each later stage replaces the answer (Viola and Jones
2001; Wang et al. 2021, https://arxiv.org/abs/2012.01988).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from orchestrator.config.ensemble import Cascade, Node
from orchestrator.config.measure import Metric
from orchestrator.config.signature import Task
from orchestrator.ensemble import quorum
from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.node import (
    Answer,
    Ground,
    Rows,
    Steps,
    answer,
    answer_uncalibrated,
    fit_all,
    fit_uncalibrated,
)
from orchestrator.errors import EnsembleError, QuorumError
from orchestrator.measure.metrics import larger_is_better, score

ALL_LEAVE = 0.0
"""Threshold below every confidence: no row goes on."""
NONE_LEAVES = 2.0
"""Threshold above every confidence (infinity is not JSON): every row goes on."""
MOST_CANDIDATES = 512
"""Thresholds tried for a stage; with more distinct confidences, evenly spread ranks among them."""


def check_task(task: Task) -> None:
    """Refuse what a cascade cannot do.

    Raises:
        EnsembleError: the task is regression, whose outputs carry no confidence.
    """
    if task != "classification":
        raise EnsembleError(
            "a cascade needs a classifier's confidence", task, "use parallel or weighted_mix instead"
        )


def confidence(scores: Floats) -> Floats:
    """Top probability [N] of log-probabilities [N, K]."""
    return np.asarray(np.exp(scores.max(axis=1)))


def undecided(scores: Floats, threshold: float) -> npt.NDArray[np.bool_]:
    """Mask [N] of the rows that go on to the next stage."""
    return np.asarray(confidence(scores) < threshold)


def candidates(observed: Floats) -> list[float]:
    """Thresholds worth trying, rising: `ALL_LEAVE`, midpoints of neighbouring confidences, `NONE_LEAVES`.

    A midpoint keeps away from the observed rows, so that rounding in another placement moves none of
    them to the other side.
    """
    values = np.unique(observed)
    middles = (values[:-1] + values[1:]) / 2
    # The midpoint of two adjacent floats is one of them; such a pair cannot be told apart safely.
    middles = middles[(middles > values[:-1]) & (middles < values[1:])]
    if len(middles) > MOST_CANDIDATES:
        middles = middles[np.linspace(0, len(middles) - 1, MOST_CANDIDATES).round().astype(int)]
    return [ALL_LEAVE, *middles.tolist(), NONE_LEAVES]


def fit_thresholds(
    stages: Sequence[Floats],
    targets: npt.NDArray[np.int64],
    metric: Metric,
    tolerance: float,
    *,
    allowed: Collection[str] = (),
) -> tuple[float, ...]:
    """Thresholds of least expected cost that keep the last stage's metric.

    Two things must hold: the metric stays within `tolerance` of the last stage's, and of the rows that the
    last stage answers right no larger share than `tolerance` is answered wrong by leaving early. The second
    gives no credit for rows that happen to be won: on few rows such luck would let everything leave at once.

    Stages are fitted front to back. For each, the rows that do not leave are taken to go to the last
    stage; a lower threshold lets more rows leave and so costs less whatever the stages cost, hence the
    lowest one that keeps the metric is the cheapest. With two stages this is the optimum over all
    candidates; with more it is greedy.

    Args:
        stages: Log-probabilities [N, K] of every stage on all rows.
        targets: Labels [N].
        metric: What must be kept.
        tolerance: Allowed loss, in the metric's unit, and share of rows lost.
        allowed: Import paths that a metric may come from.
    """
    sign = 1.0 if larger_is_better(metric) else -1.0
    last = stages[-1]
    # A hair of slack: the same rows summed in another order must not count as a loss.
    least = sign * score(metric, last, targets, allowed=allowed) - tolerance - 1e-12
    right = last.argmax(axis=1) == targets
    answers, going_on = last.copy(), np.arange(len(last))
    thresholds: list[float] = []
    for stage in stages[:-1]:
        chosen = NONE_LEAVES
        for threshold in candidates(confidence(stage[going_on])) if len(going_on) else [ALL_LEAVE]:
            leaving = going_on[~undecided(stage[going_on], threshold)]
            trial = answers.copy()
            trial[leaving] = stage[leaving]
            lost = float(np.mean(right & (trial.argmax(axis=1) != targets)))
            if lost > tolerance + 1e-12:
                continue
            if sign * score(metric, trial, targets, allowed=allowed) >= least:
                chosen, answers = threshold, trial
                break
        thresholds.append(chosen)
        going_on = going_on[undecided(stage[going_on], chosen)]
    return tuple(thresholds)


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
        scores[open_rows], stages[open_rows] = found.scores, position
        open_rows = open_rows[undecided(found.scores, threshold)]
        if not len(open_rows):
            break
    return Answer(scores, stages)


@fit_uncalibrated.register
def _fit(node: Cascade, ground: Ground) -> Node:
    check_task(ground.task)
    stages = fit_all(node.stages, ground)
    thresholds = node.thresholds
    if thresholds is None:
        scores = [ground.scores(stage) for stage in stages]
        thresholds = fit_thresholds(
            scores, ground.targets, ground.metric, node.tolerance, allowed=ground.allowed
        )
    return node.model_copy(update={"stages": stages, "thresholds": thresholds})
