"""What a fitted tree's answers are worth: complete, and without any of its members."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.calibration import Expectations, Expected, ExpectedWithout
from orchestrator.config.ensemble import Boosting, Combined, Ensemble, Member, Node, children, walk_nodes
from orchestrator.config.measure import Metric
from orchestrator.config.signature import Task
from orchestrator.ensemble.missing import MOST, Missing, fit_trend, rounded, sets_of
from orchestrator.ensemble.node import Output, identity
from orchestrator.ensemble.tree import distinct, replay
from orchestrator.errors import QuorumError
from orchestrator.measure.intervals import percentile_interval, resamples, wilson
from orchestrator.measure.metrics import larger_is_better, statistic

RESAMPLES = 200


def has_quorum(tree: Node) -> bool:
    """Whether some node of the tree may answer without one of its members."""
    return any(isinstance(node, Combined) and node.quorum is not None for node in walk_nodes(tree))


def fit_expectations(
    tree: Ensemble,
    outputs: Mapping[Member, Output],
    targets: npt.NDArray[Any],
    metric: Metric,
    task: Task,
    allowed: Collection[str],
) -> Expectations:
    """The metric of every set of missing members that leaves an answer; of many members by a rule, and in a
    nested tree of many without each one alone.

    Args:
        tree: Fitted.
        outputs: Raw outputs [N, K] of each distinct member.
        targets: Labels [N] or values [N, T].
        metric: What is expected.
        task: Which targets these are.
        allowed: Import paths that the metric may come from.
    """
    members = distinct(tree)
    alone = _alone(tree, outputs, targets, metric, task, allowed) if tree.fallback else ()

    def without(missing: Missing) -> Expected | None:
        left = {member: outputs[member] for number, member in enumerate(members) if number not in missing}
        try:
            found = replay(tree, left, task).outputs
        except QuorumError:
            return None
        return _measured(metric, found, targets, allowed)

    complete = without(())
    assert complete is not None
    many, below = len(members) > MOST, children(tree)
    if many and tree.quorum and all(isinstance(child, Member) and not child.sees for child in below):

        def change(missing: Missing) -> float | None:
            found = without(missing)
            return None if found is None else found.value - complete.value

        most = min(len(below) - tree.quorum, len(members) - 1)
        trend = fit_trend(len(members), most, change, complete.value)
        return Expectations(metric=metric.name, complete=complete, trend=trend, alone=alone)
    # Effects do not add up in a nested tree: a child that needs all of its members is lost by one as by five.
    known = [(position,) for position in range(len(members))] if many else sets_of(len(members))
    found = [(missing, without(missing)) for missing in known]
    sets = tuple(
        ExpectedWithout(without=missing, **expected.plain()) for missing, expected in found if expected
    )
    return Expectations(metric=metric.name, complete=complete, sets=sets, alone=alone)


def _alone(
    tree: Ensemble,
    outputs: Mapping[Member, Output],
    targets: npt.NDArray[Any],
    metric: Metric,
    task: Task,
    allowed: Collection[str],
) -> tuple[ExpectedWithout, ...]:
    """Each member without all others, the best first; without a boosting's later stages, which say nothing
    alone."""
    members = distinct(tree)
    sums = [node for node in walk_nodes(tree) if isinstance(node, Boosting)]
    corrections = {identity(stage) for node in sums for stage in node.members[1:]}
    found = []
    for position, member in enumerate(members):
        if identity(member) in corrections:
            continue
        expected = _measured(
            metric, replay(member, {member: outputs[member]}, task).outputs, targets, allowed
        )
        others = tuple(number for number in range(len(members)) if number != position)
        found.append(ExpectedWithout(without=others, **expected.plain()))
    return tuple(sorted(found, key=lambda one: one.value, reverse=larger_is_better(metric)))


def _measured(
    metric: Metric, outputs: Output, targets: npt.NDArray[Any], allowed: Collection[str]
) -> Expected:
    at, rows = statistic(metric, outputs, targets, allowed=allowed), len(targets)
    value = at(np.ones(rows))
    if metric.name == "accuracy":
        low, high = wilson(value * rows, rows)
    else:
        low, high = percentile_interval([at(weights) for weights in resamples(rows, 0, RESAMPLES)])
    return Expected(value=rounded(value, value), low=rounded(low, value), high=rounded(high, value))
