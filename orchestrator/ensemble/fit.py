"""From a tree of names to a fitted tree: members bound; temperatures, weights, thresholds fitted upwards."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.ensemble import Member, Node, Parallel, Sequential, WeightedMix, children, leaves
from orchestrator.config.measure import Metric
from orchestrator.config.signature import Task
from orchestrator.ensemble.calibrate import fit_temperature
from orchestrator.ensemble.cascade import check_task, fit_thresholds
from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.tree import distinct, identity, replay
from orchestrator.ensemble.weights import likelihood_weights, squared_error_weights
from orchestrator.errors import EnsembleError

Output = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class _Ground:
    """What a node is fitted on."""

    outputs: Mapping[tuple[str, str], Output]
    """Raw outputs by identity: fitting a member changes the leaf, not what it answers."""
    targets: npt.NDArray[Any]
    metric: Metric
    task: Task
    allowed: Collection[str]

    def scores(self, node: Node) -> Floats:
        """Scores [N, K] that a fitted node gives on all rows."""
        needed = {member: self.outputs[identity(member)] for member in distinct(node)}
        return replay(node, needed, self.task).scores


def bind(tree: Node, known: Mapping[str, Node]) -> Node:
    """The tree with every member that is only a name replaced by what it stands for.

    Args:
        tree: As in a run file.
        known: Bound members (with digest and execution) and fitted ensembles by name.

    Raises:
        EnsembleError: a name is unknown.
    """
    if isinstance(tree, Member):
        if tree.digest:
            return tree
        if tree.name not in known:
            raise EnsembleError("no member of that name", tree.name, f"known here: {', '.join(known)}")
        found = known[tree.name]
        if isinstance(found, Member):
            own = tree.model_fields_set & {"execution", "temperature"}
            return found.model_copy(update={name: getattr(tree, name) for name in own})
        return found
    below = tuple(bind(child, known) for child in children(tree))
    return tree.model_copy(update={"stages" if isinstance(tree, Sequential) else "members": below})


def fit(
    tree: Node,
    outputs: Mapping[Member, Output],
    targets: npt.NDArray[Any],
    metric: Metric,
    task: Task,
    *,
    allowed: Collection[str] = (),
) -> Node:
    """The tree with temperatures, weights and thresholds fitted bottom-up; values already set are kept.

    A parent is fitted on its children's answers on the same rows that they were fitted on. With a few
    weights and thresholds on hundreds of rows that bias is small, but the figures to print are those of
    another part.

    Args:
        tree: A bound tree.
        outputs: Raw outputs [N, K] of every member on the validation rows.
        targets: Labels [N] or values [N, T] of these rows.
        metric: What cascades must keep.
        task: Which targets these are.
        allowed: Import paths that the metric may come from.

    Raises:
        EnsembleError: outputs are missing, or a node cannot be fitted for this task.
    """
    by_identity = {identity(member): output for member, output in outputs.items()}
    for leaf in leaves(tree):
        if identity(leaf) not in by_identity:
            raise EnsembleError("no outputs to fit the ensemble on", leaf.name)
    return _fit(tree, _Ground(by_identity, np.asarray(targets), metric, task, allowed))


@singledispatch
def _fit(node: Node, ground: _Ground) -> Node:
    """One node fitted; every kind of node registers its own."""
    raise EnsembleError(f"no fit for {type(node).__name__} ({ground.task})")


@_fit.register
def _member(node: Member, ground: _Ground) -> Node:
    if ground.task == "regression" or node.temperature is not None:
        return node
    return node.model_copy(
        update={"temperature": fit_temperature(ground.outputs[identity(node)], ground.targets)}
    )


@_fit.register
def _parallel(node: Parallel, ground: _Ground) -> Node:
    return node.model_copy(update={"members": _fit_all(node.members, ground)})


@_fit.register
def _weighted_mix(node: WeightedMix, ground: _Ground) -> Node:
    members = _fit_all(node.members, ground)
    weights = node.weights
    if weights is None:
        scores = [ground.scores(member) for member in members]
        if ground.task == "classification":
            weights = likelihood_weights(scores, ground.targets)
        else:
            weights = squared_error_weights(scores, ground.targets.astype(np.float64))
    return node.model_copy(update={"members": members, "weights": weights})


@_fit.register
def _sequential(node: Sequential, ground: _Ground) -> Node:
    check_task(ground.task)
    stages = _fit_all(node.stages, ground)
    thresholds = node.thresholds
    if thresholds is None:
        thresholds = fit_thresholds(
            [ground.scores(stage) for stage in stages],
            ground.targets,
            ground.metric,
            node.tolerance,
            allowed=ground.allowed,
        )
    return node.model_copy(update={"stages": stages, "thresholds": thresholds})


def _fit_all(nodes: Sequence[Node], ground: _Ground) -> tuple[Node, ...]:
    return tuple(_fit(node, ground) for node in nodes)
