"""Mix weights learned from labels that arrive while the ensemble serves.

Exponentiated gradient on half the squared error of the mix (Kivinen and Warmuth 1997, Information and
Computation 132): Brier score, or error in units of `scale`. After each row, weights that fell below floor / M
are set to it and the others scaled (the projection of Herbster and Warmuth 2001, Tracking the best linear
predictor, JMLR 1). Unlike mass that is mixed back at every step, this does not pull on weights above it.

What is guaranteed, for M members:

- Learning. Over T labelled rows, in the order they are learned from, the summed loss exceeds that of any
  sequence of weights u_1..u_T above the floor, which may change from row to row, by at most
  (1 + V) ln(M / floor) / rate + rate T / 2, where V = sum of |u_t+1 - u_t| / 2: at most 1 for each change of
  the one good member. Proof: with each step KL(u_t, w_t) falls by rate times the row's regret less rate^2 / 2
  (Hoeffding; gradients differ by 2 at most); the projection does not raise it; a change of u by v raises it
  by at most v ln(M / floor) and what u's entropy falls by. It holds for a regression as long as no gradient
  had to be cut.
- Floor. No answer's negative log-likelihood exceeds that of equal weights by more than ln(1 / floor), nor any
  member's by more than ln(M / floor): from the first row, and whatever the labels were.
- Recovery. A member that was bad for ever so long comes back from floor / M, not from zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from orchestrator.config.base import Settings
from orchestrator.ensemble.combine import Floats
from orchestrator.errors import EnsembleError

MISSING = -1
"""Label of a row of which none is known (yet); NaN for a regression."""
STEEPEST = 2.0
"""Most that a row's gradients differ by between members: true of every classification, so that a wild value
of a regression moves the weights no more than a wrong class does."""


class Online(Settings):
    """Weights so far, and how they are learned: plain data, kept as JSON between updates."""

    weights: tuple[float, ...] = Field(min_length=2)
    """Sum 1, each at least `floor` / M."""
    epoch: int = Field(0, ge=0)
    """Weight epoch: one more with every update that had a label."""
    rows: int = Field(0, ge=0)
    """Labels learned from."""
    rate: float = Field(0.1, gt=0)
    floor: float = Field(0.05, gt=0, le=1)
    """Share of the weight that all members have alike, whatever happens."""
    scale: tuple[float, ...] = ()
    """Regression: deviation of each output, the unit of its errors. Empty for a classification."""


def begin(
    weights: Sequence[float], *, rate: float = 0.1, floor: float = 0.05, scale: Sequence[float] = ()
) -> Online:
    """The state before any label.

    Args:
        weights: One a member, >= 0, of sum 1: those that were fitted, or equal ones.
        rate: Large learns fast, small forgets slowly; the bound is least at
            sqrt(2 (1 + V) ln(M / floor) / T).
        floor: Share of the weight that all members have alike.
        scale: Regression: the targets' deviation, one an output.
    """
    start = _at_least(np.asarray(weights, dtype=np.float64), floor / len(weights))
    return Online(weights=tuple(start.tolist()), rate=rate, floor=floor, scale=tuple(scale))


def update(state: Online, scores: Sequence[Floats], labels: npt.NDArray[Any]) -> Online:
    """The state after some labelled rows, one step a row; a new weight epoch.

    Labels may come late, in any order and cut into batches in any way: a row's scores come with its label, a
    row without one is passed over, and a call without any label changes nothing. Rows count in the order they
    are learned from; a batch at once gives the same weights as its parts one after the other.

    Args:
        state: From `begin` or the last update.
        scores: The members' log-probabilities or values on these rows, one array [N, K] a member.
        labels: [N], `MISSING` where there is none; or values [N, T] ([N] for one), NaN where there is none.

    Raises:
        EnsembleError: there is not one array of as many rows for each member, a label is out of range, or
            a score of a labelled row is not finite.
    """
    stacked, labels = np.stack(scores), np.asarray(labels)
    if stacked.shape[:2] != (len(state.weights), len(labels)):
        raise EnsembleError(
            "scores and labels do not fit the weights",
            f"{list(stacked.shape)} and {list(labels.shape)}",
            f"give one array [N, K] for each of {len(state.weights)} members and N labels",
        )
    errors = _errors(stacked, labels, state.scale)
    if not errors.shape[1]:
        return state
    if not np.isfinite(errors).all():
        raise EnsembleError(
            "a member's scores are not finite", None, "leave rows out that a member did not answer"
        )
    weights, least = np.array(state.weights), state.floor / len(state.weights)
    for row in errors.transpose(1, 0, 2):
        slope = row @ (weights @ row)
        weights = weights * np.exp(-state.rate * np.minimum(slope - slope.min(), STEEPEST))
        weights = _at_least(weights / weights.sum(), least)
    learned = {
        "weights": tuple(weights.tolist()),
        "epoch": state.epoch + 1,
        "rows": state.rows + errors.shape[1],
    }
    return state.model_copy(update=learned)


def regret_bound(state: Online, rows: int, moved: float = 0.0) -> float:
    """Most that the summed loss can exceed that of weights above the floor that move by `moved`.

    Args:
        state: Before the first of them.
        rows: T.
        moved: V.
    """
    reach = math.log(len(state.weights) / state.floor)
    return (1 + moved) * reach / state.rate + state.rate * rows / 2


def _errors(stacked: Floats, labels: npt.NDArray[Any], scale: Sequence[float]) -> Floats:
    """Errors [M, n, K] of the labelled rows, such that half the squared norm is a row's loss."""
    if not scale:
        known = labels != MISSING
        chosen = labels[known]
        wrong = chosen[(chosen < 0) | (chosen >= stacked.shape[2])]
        if len(wrong):
            raise EnsembleError(
                "label out of range", int(wrong[0]), f"labels are 0 to {stacked.shape[2] - 1}"
            )
        errors = np.exp(stacked[:, known])
        errors[:, np.arange(len(chosen)), chosen] -= 1.0
        return np.asarray(errors)
    truth = labels.reshape(len(labels), -1).astype(np.float64)
    known = ~np.isnan(truth).any(axis=1)
    errors = (stacked[:, known] - truth[known]) / np.asarray(scale)
    return np.asarray(errors / math.sqrt(truth.shape[1]))


def _at_least(weights: Floats, least: float) -> Floats:
    """The nearest weights of sum 1 that are all at least `least`, by relative entropy."""
    low = np.zeros(len(weights), dtype=bool)
    while True:
        free = 1.0 - least * low.sum()
        scaled = np.where(low, least, weights)
        if not low.all():
            scaled[~low] *= free / scaled[~low].sum()
        fallen = ~low & (scaled < least)
        if not fallen.any():
            return scaled
        low |= fallen
