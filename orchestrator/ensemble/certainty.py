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
from orchestrator.measure.tasks import class_rules


def certainty(
    criterion: Criterion, scores: Floats, agreement: Floats | None, task: Task = "classification"
) -> Floats:
    """Certainty [N] of an answer; that of several labels is as sure as its least sure one.

    Args:
        criterion: Which kind.
        scores: [N, K]; at least two classes, or one label.
        agreement: [N] share of the members that say what their ensemble says; None of a single model.
        task: Which scores these are.

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
    kind = class_rules(task)
    return np.asarray(kind.by_row(_of_classes(criterion, kind.as_classes(scores)), len(scores)).min(axis=1))


def _of_classes(criterion: Criterion, scores: Floats) -> Floats:
    """Of log-probabilities [N, K], K at least 2."""
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
    """Share [N] of an ensemble's members, by weight, whose class (or all of whose labels) are the ensemble's;
    None for a regression.

    Args:
        members: Scores [N, K] of each member that answered.
        scores: The ensemble's own [N, K].
        shares: Of these members. They sum to 1 where all answered; a missing member agrees with nobody, so
            that one that is left cannot let rows leave by agreeing with itself.
        task: Which scores these are.
    """
    if task == "regression":
        return None
    kind = class_rules(task)
    same = kind.right(np.stack(members), kind.decisions(scores))
    return np.asarray(np.minimum(np.asarray(shares) @ same, 1.0))
