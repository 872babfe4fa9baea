"""What each member of an ensemble contributes: alone, when it is left out, and over all coalitions.

A coalition is a set of the root's members. Its worth is that of the tree restricted to it: a mean, vote or
mix with the weights of these members renormalised, a cascade of these stages with their thresholds, whose
last stage answers all that reach it, a boosting's sum of these stages. Class weights, a gate and a
meta-learner are for all members together: without some, weights that are alike for all rows, or the mean
that the meta-learner adds to, stand in, as when members are missing. A chain's later model answers only where
all that it sees are there. Nothing is fitted again. The empty coalition knows nothing: it says every class
with the same probability and so is right in one row of K, every label with 1/2 and so is right in one row of
2^K, or the targets' mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.ensemble import (
    Boosting,
    Cascade,
    Chain,
    Member,
    Node,
    Parallel,
    PooledNode,
    Stacking,
    WeightedMix,
    children,
)
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.node import Output, identity
from orchestrator.ensemble.pooled import renormalized
from orchestrator.ensemble.tree import replay
from orchestrator.measure.tasks import class_rules

MOST = 10
"""Members up to which every coalition is looked at."""
_RIGHT: dict[Task, str] = {"classification": "accuracy", "multilabel": "subset_accuracy"}
"""Name of the share of rows that are right."""
Coalition = tuple[int, ...]
"""Positions of members, rising."""


@dataclass(frozen=True)
class Contribution:
    """One member's, in accuracy gained, nats saved or squared error saved: more is better."""

    alone: float
    """Worth of the member alone above the empty coalition's."""
    leave_one_out: float
    """What the ensemble loses without it; negative when it is better without."""
    shapley: float | None
    """Its mean gain over all orders of joining (Shapley 1953); None with more than `MOST` members. The
    members' sum is the ensemble's worth above the empty coalition's."""


@singledispatch
def restricted(tree: Node, kept: Coalition) -> Node | None:  # noqa: ARG001
    """The tree with only some of its members, at least one.

    None where nobody of them can answer, and where the tree has no members. Every kind that has them
    registers its own.
    """
    return None


@restricted.register
def _of_pooled(tree: PooledNode, kept: Coalition) -> Node | None:
    missing = tuple(position for position in range(len(tree.members)) if position not in kept)
    update: dict[str, Any] = {"members": tuple(tree.members[position] for position in kept), "quorum": None}
    if isinstance(tree, Chain):
        update["members"] = sighted = _sighted(update["members"])
        if len(sighted) in (0, len(tree.members)):
            return tree if sighted else None
        mean = Parallel(members=tree.members, calibration=tree.calibration)
        return mean.model_copy(update=update)
    if isinstance(tree, Stacking):
        assert tree.coefficients is not None
        none = (0.0,) * len(tree.coefficients[0])  # what is left is the mean that the meta-learner adds to
        update["coefficients"] = (none,) * (len(kept) * len(none) + 1)
        return tree.model_copy(update=update)
    update["weights"] = renormalized(tree.weights, missing)
    if isinstance(tree, WeightedMix):
        update |= {"method": "likelihood", "class_weights": None, "gate": None}
    return tree.model_copy(update=update)


def _sighted(kept: Sequence[Node]) -> tuple[Node, ...]:
    """Those that can answer: they see nobody who is not among them."""
    names = {identity(node) for node in kept if isinstance(node, Member)}
    return tuple(
        node for node in kept if not isinstance(node, Member) or names.issuperset(map(identity, node.sees))
    )


@restricted.register
def _of_cascade(tree: Cascade, kept: Coalition) -> Node | None:
    thresholds = tuple((tree.thresholds or ())[position] for position in kept[:-1])
    return tree.model_copy(
        update={
            "stages": tuple(tree.stages[position] for position in kept),
            "thresholds": thresholds,
            "quorum": None,
        }
    )


@restricted.register
def _of_boosting(tree: Boosting, kept: Coalition) -> Boosting:
    factors = tuple((tree.factors or ())[position] for position in kept)
    members = tuple(tree.members[position] for position in kept)
    update = {"members": members, "factors": factors, "train_losses": None, "survivors": (), "quorum": None}
    return tree.model_copy(update=update)


def first_stages(tree: Boosting, count: int) -> Boosting:
    """The sum of so many first stages."""
    return _of_boosting(tree, tuple(range(count)))


def shares_of(tree: Node) -> tuple[float, ...]:
    """Weights of the root's members; alike where the tree has none."""
    weights: tuple[float, ...] | None = getattr(tree, "weights", None)
    count = len(children(tree))
    return (1 / count,) * count if weights is None else weights


def member_scores(tree: Node, outputs: Mapping[Member, Output], task: Task) -> list[Floats]:
    """Scores [N, K] of each of the root's members; of a boosting's stage, which alone says nothing, those of
    the sum up to it."""
    if isinstance(tree, Boosting):
        sums = [first_stages(tree, place + 1) for place in range(len(tree.members))]
        return [replay(first, outputs, task).scores for first in sums]
    return [replay(child, outputs, task).scores for child in children(tree)]


def contributions(
    tree: Node, outputs: Mapping[Member, Output], targets: npt.NDArray[Any], task: Task
) -> dict[str, tuple[Contribution, ...]] | None:
    """Contributions of the root's members, in their order, by measure.

    Args:
        tree: A fitted ensemble.
        outputs: Raw outputs [N, K] of every member on the same rows.
        targets: Classes [N], labels [N, K] or values [N, K].
        task: Which of them. Classification is judged by `accuracy` and `nll`, several labels by
            `subset_accuracy` and `nll`, regression by `squared_error`.

    Returns:
        None for a single model.
    """
    count = len(children(tree))
    if not count:
        return None
    everyone = tuple(range(count))
    coalitions = all_coalitions(count) if count <= MOST else _outer(everyone)
    found = {coalition: _worth(tree, coalition, outputs, targets, task) for coalition in coalitions}
    return {
        measure: _contributions({coalition: worth[measure] for coalition, worth in found.items()}, everyone)
        for measure in found[()]
    }


def shapley(worth: Mapping[Coalition, float], count: int) -> tuple[float, ...]:
    """Exact Shapley values of `count` members from the worth of all their coalitions."""
    values = []
    for member in range(count):
        gain = 0.0
        for coalition in all_coalitions(count):
            if member not in coalition:
                joined = tuple(sorted((*coalition, member)))
                gain += (worth[joined] - worth[coalition]) / (count * comb(count - 1, len(coalition)))
        values.append(gain)
    return tuple(values)


def all_coalitions(count: int) -> list[Coalition]:
    """All 2^count of them, the smaller ones first."""
    return [found for size in range(count + 1) for found in combinations(range(count), size)]


def _outer(everyone: Coalition) -> list[Coalition]:
    """Nobody, each member alone, everyone but one, and everyone."""
    return [(), *((member,) for member in everyone), *combinations(everyone, len(everyone) - 1), everyone]


def _contributions(worth: Mapping[Coalition, float], everyone: Coalition) -> tuple[Contribution, ...]:
    count = len(everyone)
    shares: Sequence[float | None] = shapley(worth, count) if count <= MOST else [None] * count
    return tuple(
        Contribution(
            alone=worth[member,] - worth[()],
            leave_one_out=worth[everyone] - worth[tuple(other for other in everyone if other != member)],
            shapley=shares[member],
        )
        for member in everyone
    )


def _worth(
    tree: Node, coalition: Coalition, outputs: Mapping[Member, Output], targets: npt.NDArray[Any], task: Task
) -> dict[str, float]:
    """By measure, larger is better."""
    part = tree if len(coalition) == len(children(tree)) else None
    if part is None and coalition:
        part = restricted(tree, coalition)
    if part is None:
        return _ignorance(next(iter(outputs.values())).shape[1], targets, task)
    scores = replay(part, outputs, task).scores
    if task == "regression":
        return {"squared_error": -float(np.square(scores - targets.reshape(scores.shape)).mean())}
    kind = class_rules(task)
    right, losses = kind.right(scores, targets), kind.losses(scores, targets)
    return {_RIGHT[task]: float(right.mean()), "nll": -float(losses.mean())}


def _ignorance(width: int, targets: npt.NDArray[Any], task: Task) -> dict[str, float]:
    if task == "regression":
        return {"squared_error": -float(targets.reshape(len(targets), -1).var(axis=0).mean())}
    chance, options = (0.5**width, 2) if task == "multilabel" else (1 / width, width)
    return {_RIGHT[task]: chance, "nll": -float(np.log(options))}
