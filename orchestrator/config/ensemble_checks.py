"""What an ensemble of a run file asks for that does not fit its task, or would do nothing."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.config.ensemble import (
    VALUE_RULES,
    AnyNode,
    Cascade,
    Combined,
    Member,
    Parallel,
    PooledNode,
)
from orchestrator.config.signature import Task


def complaint_of(node: AnyNode, task: Task, ensembles: Mapping[str, AnyNode], *, root: bool) -> str | None:
    """What is wrong with a node, or None.

    Args:
        node: Of an ensemble.
        task: Of the run.
        ensembles: Of the run file, by name.
        root: Whether it is the whole ensemble.
    """
    complaint = _needs_classifier(node) if task == "regression" else None
    complaint = complaint or _sets_complaint(node, task, root=root)
    if isinstance(node, Cascade):
        complaint = complaint or _cascade_complaint(node, ensembles)
    return complaint


def _needs_classifier(node: AnyNode) -> str | None:
    """What a regression's ensembles cannot have."""
    if isinstance(node, Parallel) and node.rule not in VALUE_RULES:
        return f"rule {node.rule} needs a classifier; a regression takes {', '.join(VALUE_RULES)}"
    if isinstance(node, Cascade):
        return "a cascade needs a classifier: a regression's values are not sure or unsure"
    if isinstance(node, Combined) and node.calibration is not None:
        return f"calibration {node.calibration.kind} needs a classifier; leave it out"
    return None


def _sets_complaint(node: AnyNode, task: Task, *, root: bool) -> str | None:
    """Sets of classes are a classifier's, intervals a regression's, and both the whole ensemble's."""
    if not isinstance(node, Combined):
        return None
    regression = task == "regression"
    if node.reject is not None and (regression or not root):
        why = "needs a classifier" if regression else "belongs to the whole ensemble: give it at its top"
        return f"reject {why}"
    for key, fits in (("prediction_sets", not regression), ("intervals", regression)):
        found = getattr(node, key)
        if found is None:
            continue
        if not fits:
            other = "intervals" if regression else "prediction_sets"
            return f"{key} are not for a {task}: use {other}"
        if not root:
            return f"{key} belong to the whole ensemble: give them at its top"
        if found.fitted:
            return f"{key} are fitted on the calibration part: leave out its fitted number"
    return None


def _cascade_complaint(node: Cascade, ensembles: Mapping[str, AnyNode]) -> str | None:
    """What would be ignored or fail once the cascade is fitted. Names are those of ensembles above."""
    aims = [key for key in ("tolerance", "max_cost", "guarantee") if getattr(node, key) is not None]
    if node.thresholds is not None and aims:
        return f"given thresholds are kept, so {' and '.join(aims)} would do nothing; leave out either"
    if node.criterion == "agreement":
        for stage in node.stages[:-1]:
            found = ensembles.get(stage.name, stage) if isinstance(stage, Member) else stage
            if not isinstance(found, PooledNode):
                name = stage.name if isinstance(stage, Member) else stage.kind
                return (
                    f"criterion agreement: stage {name} has no members that could agree; let every "
                    "stage but the last be parallel, weighted_mix or stacking, or use confidence"
                )
    return None
