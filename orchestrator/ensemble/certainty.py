"""How sure an answer is: what lets a row leave a cascade early.

Every criterion runs from 0 to 1 and rises with certainty, so that a threshold always means "at least".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from orchestrator.config.ensemble import Criterion
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats, entropy
from orchestrator.errors import EnsembleError


def certainty(criterion: Criterion, scores: Floats, agreement: Floats | None) -> Floats:
    """Certainty [N] of an answer with log-probabilities `scores` [N, K].

    Args:
        criterion: Which kind.
        scores: As above; at least two classes.
        agreement: [N] share of the members that say what their ensemble says; None of a single model.

    Raises:
        EnsembleError: a single model is asked how far its members agree.
    """
    if criterion == "agreement":
        if agreement is None:
            raise EnsembleError(
                "this stage has no members that could agree",
                "criterion: agreement",
                "let every stage but the last be parallel, weighted_mix or stacking, or use confidence",
            )
        return agreement
    if criterion == "confidence":
        return np.asarray(np.exp(scores.max(axis=1)))
    if criterion == "margin":
        probs = np.exp(scores)
        second, first = np.partition(probs, -2, axis=1)[:, -2:].T
        return np.asarray(first - second)
    return np.asarray(np.clip(1 - entropy(scores) / math.log(scores.shape[1]), 0.0, 1.0))


def agreement_of(
    members: Sequence[Floats], scores: Floats, shares: Sequence[float], task: Task
) -> Floats | None:
    """Share [N] of an ensemble's members, by weight, whose label is the ensemble's; None for a regression.

    Args:
        members: Log-probabilities [N, K] of each member that answered.
        scores: The ensemble's own [N, K].
        shares: Of these members. They sum to 1 where all answered; a missing member agrees with nobody, so
            that one that is left cannot let rows leave by agreeing with itself.
        task: Only a classification has labels.
    """
    if task == "regression":
        return None
    same = np.stack([member.argmax(axis=1) for member in members]) == scores.argmax(axis=1)
    return np.asarray(np.minimum(np.asarray(shares) @ same, 1.0))
