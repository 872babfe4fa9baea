"""From a tree of names to a fitted tree: members bound; temperatures, weights, thresholds fitted upwards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.ensemble import Combined, Member, Node, children, leaves, with_children
from orchestrator.config.measure import Metric
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.conformal import fit_root
from orchestrator.ensemble.expect import fit_expectations, has_quorum
from orchestrator.ensemble.guard import records, with_records
from orchestrator.ensemble.node import Ground, Output, fit_node, identity
from orchestrator.ensemble.reject import fit_reject
from orchestrator.ensemble.tree import distinct, replay
from orchestrator.errors import EnsembleError

_OF_A_ROOT = dict.fromkeys(("expected", "fallback", "prediction_sets", "intervals", "reject"))
"""What an ensemble loses that becomes a part of another one."""


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
            own = tree.model_fields_set & {"execution", "temperature", "required"}
            return found.model_copy(update={name: getattr(tree, name) for name in own})
        # What it is worth by itself says nothing about the tree that it becomes a part of.
        return found.model_copy(update={"required": tree.required, **_OF_A_ROOT})
    return with_children(tree, [bind(child, known) for child in children(tree)])


def fit(
    tree: Node,
    outputs: Mapping[Member, Output],
    targets: npt.NDArray[Any],
    metric: Metric,
    task: Task,
    *,
    allowed: Collection[str] = (),
    cost: Callable[[Member], float] | None = None,
    calibration: tuple[Mapping[Member, Output], npt.NDArray[Any]] | None = None,
    folded: tuple[Mapping[Member, Output], npt.NDArray[Any]] | None = None,
    outside: Mapping[Member, Output] | None = None,
) -> Node:
    """The tree with temperatures, weights, thresholds and calibrations fitted bottom-up; values already set
    are kept. With a quorum anywhere it also gets members' records and what it is worth without some.

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
        cost: What one row costs a member (multiply-accumulates): a cascade's `max_cost` needs it.
        calibration: Outputs and targets of the calibration rows: a cascade's `guarantee`, prediction sets and
            intervals need them, and nothing else is fitted on them.
        folded: Outputs and targets of the train rows, each row by members trained without its fold: a stack
            with `folds` needs them.
        outside: Outputs on rows that are out of scope: a `reject` by its `recall` needs them.

    Raises:
        EnsembleError: outputs are missing, or a node cannot be fitted for this task.
    """
    ground = _ground(tree, outputs, targets, metric, task, allowed)
    unseen = None if calibration is None else _ground(tree, *calibration, metric, task, allowed)
    apart = None if folded is None else _ground(tree, *folded, metric, task, allowed)
    fitted = fit_node(tree, replace(ground, cost=cost, unseen=unseen, folded=apart))
    if isinstance(fitted, Combined) and has_quorum(fitted):
        found = {member: ground.outputs[identity(member)] for member in distinct(fitted)}
        expected = fit_expectations(fitted, found, ground.targets, metric, task, allowed)
        known = records(replay(fitted, found, task), found, task)
        fitted = with_records(fitted, {identity(member): record for member, record in known.items()})
        fitted = fitted.model_copy(update={"expected": expected})
    return _with_sets(_with_reject(fitted, ground, outside), unseen)


def _with_reject(tree: Node, ground: Ground, outside: Mapping[Member, Output] | None) -> Node:
    """The tree with its threshold to reject by, if it asks for one."""
    if not isinstance(tree, Combined) or tree.reject is None or tree.reject.fitted:
        return tree
    said = {member: ground.outputs[identity(member)] for member in distinct(tree)}
    inside = replay(tree, said, ground.task)
    theirs = None
    if outside is not None:
        found = {identity(member): output for member, output in outside.items()}
        theirs = replay(tree, {member: found[identity(member)] for member in distinct(tree)}, ground.task)
    return tree.model_copy(update={"reject": fit_reject(tree.reject, tree, inside, theirs)})


def _with_sets(tree: Node, unseen: Ground | None) -> Node:
    if isinstance(tree, Member) or (tree.prediction_sets is None and tree.intervals is None):
        return tree
    if unseen is None:
        raise EnsembleError("prediction sets and intervals need calibration rows", tree.kind)
    said = {member: unseen.outputs[identity(member)] for member in distinct(tree)}
    return fit_root(tree, replay(tree, said, unseen.task), unseen.targets)


def _ground(
    tree: Node,
    outputs: Mapping[Member, Output],
    targets: npt.NDArray[Any],
    metric: Metric,
    task: Task,
    allowed: Collection[str],
) -> Ground:
    by_identity = {identity(member): output for member, output in outputs.items()}
    for leaf in leaves(tree):
        if identity(leaf) not in by_identity:
            raise EnsembleError("no outputs to fit the ensemble on", leaf.name)

    def scores(node: Node) -> Floats:
        return replay(node, {member: by_identity[identity(member)] for member in distinct(node)}, task).scores

    return Ground(by_identity, np.asarray(targets), metric, task, allowed, scores)
