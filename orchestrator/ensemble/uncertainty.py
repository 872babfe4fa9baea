"""How unsure an ensemble is of a row, and whether because the row is ambiguous or because members differ.

Entropies are in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.measure import Metric
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats, entropy, pool
from orchestrator.measure.metrics import score
from orchestrator.measure.tasks import class_rules


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Of N rows, each array [N]; total = aleatoric + epistemic."""

    total: Floats
    """Entropy of the members' mixture."""
    aleatoric: Floats
    """Mean entropy of the members: doubt that each of them has."""
    epistemic: Floats
    """The rest, the mutual information of answer and member: how far they contradict each other."""


def uncertainty(
    scores: Sequence[Floats], weights: Sequence[float] | None = None, task: Task = "classification"
) -> Uncertainty:
    """The decomposition of Depeweg et al. 2018 (https://arxiv.org/abs/1710.07283) over an ensemble.

    Malinin and Gales 2018 (https://arxiv.org/abs/1802.10501) use it to tell shifted rows from ambiguous ones.

    Args:
        scores: [N, K] of each member.
        weights: One a member, summing to 1; alike when None.
        task: Which scores these are; of several labels each is looked at by itself, and the mean taken.
    """
    kind = class_rules(task)

    def doubt(found: Floats) -> Floats:
        return np.asarray(kind.by_row(entropy(kind.as_classes(found)), len(found)).mean(axis=1))

    total = doubt(pool(scores, weights, task))
    aleatoric = np.average([doubt(found) for found in scores], axis=0, weights=weights)
    # Members that agree differ by rounding alone.
    aleatoric = np.minimum(aleatoric, total)
    return Uncertainty(total, aleatoric, total - aleatoric)


def dissent(
    scores: Sequence[Floats],
    answer: Floats,
    weights: Sequence[float] | None = None,
    task: Task = "classification",
) -> Floats:
    """Share [N] of the members, by weight, whose class is not the ensemble's, or whose labels are not.

    Args:
        scores: [N, K] of each member.
        answer: The ensemble's.
        weights: One a member, summing to 1; alike when None.
        task: Which scores these are.
    """
    kind = class_rules(task)
    against = ~kind.right(np.stack(scores), kind.decisions(answer))
    return np.asarray(np.average(against, axis=0, weights=weights))


def spread(values: Sequence[Floats], weights: Sequence[float] | None = None) -> Floats:
    """Standard deviation [N, T] of the members' values about their mean: the epistemic part of a regression.

    Args:
        values: [N, T] of each member.
        weights: One a member, summing to 1; alike when None.
    """
    centre = np.average(values, axis=0, weights=weights)
    return np.asarray(np.sqrt(np.average(np.square(np.stack(values) - centre), axis=0, weights=weights)))


def detection_auroc(inside: npt.NDArray[Any], outside: npt.NDArray[Any]) -> float:
    """Chance that a row from elsewhere has the higher uncertainty, ties half (Mann-Whitney).

    How well an uncertainty finds out-of-distribution rows (Hendrycks and Gimpel 2017,
    https://arxiv.org/abs/1610.02136); 0.5 is chance.

    Args:
        inside: Uncertainty [N] of rows like those of the training.
        outside: Uncertainty [M] of the others.
    """
    found = np.concatenate([inside, outside]).astype(np.float64)
    labels = np.repeat([0, 1], [len(inside), len(outside)])
    return score(Metric(name="auroc"), np.stack([np.zeros_like(found), found], axis=1), labels)


def false_positive_rate(inside: npt.NDArray[Any], outside: npt.NDArray[Any], recall: float = 0.95) -> float:
    """Share of rows from elsewhere that pass a threshold which `recall` of the other rows pass (FPR at 95 %
    recall, as in Liang et al. 2018, https://arxiv.org/abs/1706.02690). 0 is best.

    Args:
        inside: Uncertainty [N] of rows like those of the training.
        outside: Uncertainty [M] of the others.
        recall: Share of the inside rows that are kept, at least.
    """
    kept = np.sort(inside)[int(np.ceil(recall * len(inside))) - 1]
    return float(np.mean(np.asarray(outside) <= kept))
