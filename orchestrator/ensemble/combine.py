"""Members' outputs to scores, and scores to one score.

Inside an ensemble a row's scores are float64 log-probabilities (classification), log-odds of each label
(multilabel), or values in raw units (regression): `orchestrator.measure.tasks`. The default is the mean of
probabilities, not of logits: a mixture, whose negative log-likelihood is never worse than the members' mean
(Jensen). All rules run in log space, so that nothing is clipped, every score is finite, and a weight of 1
gives that member's scores to the last bit.

Every function here is pure: any subset of members can be pooled, with the weights of that subset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.ensemble import TASK_RULES, TRIM, Rule
from orchestrator.config.signature import Task
from orchestrator.errors import EnsembleError
from orchestrator.measure.metrics import log_softmax
from orchestrator.measure.tasks import rules

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]
"""Positions of rows."""

VOTE_RULES: tuple[Rule, ...] = ("vote", "weighted_vote")
TIE = 1e-9
"""Weighted votes closer than this are a tie: fitted weights are rounded to ten digits."""
_LEAST = float(np.log(np.finfo(np.float64).tiny))
"""Log-probability below which p log p is 0."""


def scores_of(outputs: npt.NDArray[np.floating[Any]], task: Task, temperature: float | None = None) -> Floats:
    """Scores [N, K] of one member's outputs: of logits / temperature, or of regression values."""
    return rules(task).scores(outputs if temperature is None else outputs.astype(np.float64) / temperature)


def entropy(scores: Floats) -> Floats:
    """Entropy [N], in nats, of log-probabilities [N, K]; a probability of zero adds nothing."""
    finite = np.maximum(scores, _LEAST)
    return np.asarray(-(np.exp(finite) * finite).sum(axis=1))


def check_rule(rule: Rule, task: Task) -> None:
    """Refuse a rule that the task does not have.

    Raises:
        EnsembleError: it has not.
    """
    if rule not in TASK_RULES[task]:
        raise EnsembleError(f"this rule is not for task {task}", rule, f"use {', '.join(TASK_RULES[task])}")


def pool(
    scores: Sequence[Floats],
    weights: Sequence[float] | None,
    task: Task,
    rule: Rule = "mean",
    trim: float = TRIM,
) -> Floats:
    """One score of the members' scores; equal weights when `weights` is None.

    - `mean`: weighted mean of probabilities or values.
    - `logits`: weighted mean of log-probabilities, renormalised (logarithmic pool, geometric mean), or of
      log-odds.
    - `vote`, `weighted_vote`: see `vote_scores`.
    - `median`, `trimmed_mean`, `maximum`: of each class's probabilities, renormalised (Kuncheva 2014,
      Combining Pattern Classifiers, 2nd ed., ch. 5), of each label's, or of values; they have no weights.

    Args:
        scores: One array [N, K] a member.
        weights: One a member, >= 0, summing to 1.
        task: Which kind of scores they are.
        rule: How they become one.
        trim: Share of the members that `trimmed_mean` leaves out at each end: rounded down, but at least one
            where there are three members.

    Returns:
        Pooled scores [N, K].

    Raises:
        EnsembleError: the rule is not for this task, or takes no weights.
    """
    check_rule(rule, task)
    stacked = np.stack(scores)
    if rule in ("median", "trimmed_mean", "maximum"):
        if weights is not None:
            raise EnsembleError("this rule takes no weights", rule, "use weighted_vote or kind weighted_mix")
        return _middle(stacked, _kept(len(scores), rule, trim), task)
    shares = np.full(len(scores), 1 / len(scores)) if weights is None else np.asarray(weights, np.float64)
    if rule in VOTE_RULES:
        return vote_scores(stacked, shares)
    if rule == "logits":
        return rules(task).normalized((shares[:, None, None] * stacked).sum(axis=0))
    return rules(task).mixture(stacked, shares[:, None, None])


def vote_scores(stacked: Floats, shares: Floats) -> Floats:
    """Log of smoothed vote shares [N, K], so that votes feed metrics and calibration like probabilities.

    Every member votes for its top class, the first of equal ones. One further vote is divided by the
    members' mean probabilities: it keeps shares above zero, breaks ties, and cannot turn a decision, since
    votes differ by one at least. Weighted votes can differ by less; then only as much of the further vote as
    they differ by is divided so, and the rest equally.

    Args:
        stacked: Log-probabilities [M, N, K].
        shares: Weights [M] of sum 1.
    """
    members, rows, classes = stacked.shape
    ballots = np.zeros((rows, classes))
    for share, choice in zip(shares * members, stacked.argmax(axis=2), strict=True):
        ballots[np.arange(rows), choice] += share
    most = ballots.max(axis=1, keepdims=True)
    behind = np.where(ballots < most - TIE, most - ballots, np.inf)
    by_mean = np.minimum(behind.min(axis=1, keepdims=True), 1.0)
    with np.errstate(divide="ignore"):
        tie_break = np.log(by_mean) + rules("classification").mixture(stacked, shares[:, None, None])
        votes = np.log(ballots + (1 - by_mean) / classes)
    return log_softmax(np.logaddexp(votes, tie_break))


def decision_margin(scores: Sequence[Floats], weights: Sequence[float] | None, rule: Rule) -> Floats:
    """How safe each row [N] is from answering otherwise where members' outputs are rounded otherwise.

    Under the vote rules it is the least gap between a voter's two highest probabilities: members may move by
    half of it before a vote does. Infinite under all other rules, the median among them: they are
    continuous, and members' log-probabilities that change by at most d change the answer's by at most 2 d.

    Args:
        scores: Log-probabilities [N, K], one array a member; K at least 2.
        weights: As for `pool`; members of weight 0 do not vote.
        rule: The rule of the node.
    """
    if rule not in VOTE_RULES:
        return np.full(len(scores[0]), np.inf)
    voters = [scores[place] for place in range(len(scores)) if weights is None or weights[place] > 0]
    top_two = np.exp(np.sort(np.stack(voters), axis=2)[:, :, -2:])
    return np.asarray((top_two[..., 1] - top_two[..., 0]).min(axis=0))


def deviations(values: Floats) -> Floats:
    """Standard deviation [T] of values [N, T], the unit of their errors; 1 where they are constant."""
    found = values.std(axis=0)
    return np.asarray(np.where(found > 0, found, 1.0))


def _kept(members: int, rule: Rule, trim: float) -> slice:
    """Which of the members, sorted for each class, an order statistic takes."""
    if rule == "maximum":
        return slice(members - 1, members)
    if rule == "median":
        return slice((members - 1) // 2, members // 2 + 1)
    cut = min(max(1, int(trim * members + 1e-9)), (members - 1) // 2)
    return slice(cut, members - cut)


def _middle(stacked: Floats, kept: slice, task: Task) -> Floats:
    """Mean of the `kept` ones of each class's scores in rising order; probabilities are renormalised."""
    found = np.sort(stacked, axis=0)[kept]
    return rules(task).normalized(rules(task).mixture(found, np.full((1, 1, 1), 1 / len(found))))
