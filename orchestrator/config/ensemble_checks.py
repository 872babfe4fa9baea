"""What an ensemble of a run file asks for that does not fit its task, or would do nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestrator.config.base import Settings
from orchestrator.config.ensemble import (
    TASK_METHODS,
    TASK_RULES,
    AnyNode,
    Boosting,
    Cascade,
    Chain,
    Combined,
    Member,
    Method,
    Parallel,
    PooledNode,
    Stacking,
    WeightedMix,
    children,
)
from orchestrator.config.signature import Task

_OF_METHODS: dict[str, tuple[Method, ...]] = {
    "strength": ("per_class", "gate"),
    "rounds": ("greedy",),
    "bags": ("greedy",),
}
"""Settings of a mix that are some methods' alone."""


def complaint_of(node: AnyNode, task: Task, ensembles: Mapping[str, AnyNode], *, root: bool) -> str | None:
    """What is wrong with a node, or None.

    Args:
        node: Of an ensemble.
        task: Of the run.
        ensembles: Of the run file, by name.
        root: Whether it is the whole ensemble.
    """
    complaint = _task_complaint(node, task) or _sets_complaint(node, task, root=root) or _idle(node)
    if isinstance(node, Member) and node.name in ensembles:
        idle = sorted(node.model_fields_set & {"execution", "temperature"})
        if idle:
            complaint = f"member {node.name} is an ensemble, which has no {idle[0]}: leave it out"
    if isinstance(node, Cascade):
        complaint = complaint or _cascade_complaint(node, ensembles)
    return complaint


def _task_complaint(node: AnyNode, task: Task) -> str | None:
    """What ensembles of this task cannot have."""
    if isinstance(node, Parallel) and node.rule not in TASK_RULES[task]:
        return f"rule {node.rule} is not for task {task}: use {', '.join(TASK_RULES[task])}"
    if isinstance(node, WeightedMix) and node.rule != "mean" and "logits" not in TASK_RULES[task]:
        return f"rule {node.rule} is not for task {task}: use mean"
    if isinstance(node, WeightedMix) and node.method not in TASK_METHODS[task]:
        return f"method {node.method} is not for task {task}: use {', '.join(TASK_METHODS[task])}"
    if task == "multilabel" and isinstance(node, Boosting | Chain | Stacking):
        return f"policy {node.policy} is not for task {task}: use parallel, weighted_mix or a cascade"
    if task == "multilabel" and isinstance(node, Cascade) and node.guarantee is not None:
        return f"a guarantee is not for task {task}: use tolerance or max_cost"
    if task == "regression" and isinstance(node, Member) and node.temperature is not None:
        return f"a temperature ({node.temperature:g}, of member {node.name}) needs a classifier: leave it out"
    if task == "regression" and isinstance(node, Cascade):
        return "a cascade needs a classifier: a regression's values are not sure or unsure"
    if task == "regression" and isinstance(node, Combined) and node.calibration is not None:
        return f"calibration {node.calibration.kind} needs a classifier; leave it out"
    return None


def _sets_complaint(node: AnyNode, task: Task, *, root: bool) -> str | None:
    """Sets of classes are a classifier's, intervals a regression's, and both the whole ensemble's."""
    if not isinstance(node, Combined):
        return None
    if node.reject is not None and (task != "classification" or not root):
        fits = task == "classification"
        why = "belongs to the whole ensemble: give it at its top" if fits else "needs a classifier"
        return f"reject {why}"
    for key, own in (("prediction_sets", "classification"), ("intervals", "regression")):
        found = getattr(node, key)
        if found is None:
            continue
        if task != own:
            other = {"classification": "prediction_sets", "regression": "intervals"}.get(task)
            return f"{key} are not for task {task}: {f'use {other}' if other else 'leave them out'}"
        if not root:
            return f"{key} belong to the whole ensemble: give them at its top"
        if found.fitted:
            return f"{key} are fitted on the calibration part: leave out its fitted number"
    return None


def _idle(node: AnyNode) -> str | None:
    """A setting of another method or rule than the node's, whose fit would pass it by."""
    if not isinstance(node, Combined):
        return None
    reject = node.reject
    if reject is not None and reject.recall is not None and _given(reject, "keep"):
        return (
            f"reject: keep {reject.keep:g} would do nothing beside recall {reject.recall:g}; leave out either"
        )
    if isinstance(node, Parallel) and node.rule != "trimmed_mean" and _given(node, "trim"):
        return f"trim {node.trim:g} belongs to rule trimmed_mean, not {node.rule}: leave out either"
    if isinstance(node, WeightedMix):
        for key, methods in _OF_METHODS.items():
            if node.method not in methods and _given(node, key):
                taken = f"method {' or '.join(methods)}"
                return f"{key} {getattr(node, key):g} belongs to {taken}, not {node.method}: leave out either"
    return None


def _given(settings: Settings, key: str) -> bool:
    """Whether it is another value than the default: who saves settings writes all of them."""
    return bool(getattr(settings, key) != type(settings).model_fields[key].default)


def _below(node: AnyNode, ensembles: Mapping[str, AnyNode]) -> Iterator[AnyNode]:
    """All nodes below one, those of ensembles that it names, too."""
    for child in children(node):
        found = ensembles.get(child.name, child) if isinstance(child, Member) else child
        yield found
        yield from _below(found, ensembles)


def _cascade_complaint(node: Cascade, ensembles: Mapping[str, AnyNode]) -> str | None:
    """What would be ignored or fail once the cascade is fitted. Names are those of ensembles above."""
    aims = [key for key in ("tolerance", "max_cost", "guarantee") if getattr(node, key) is not None]
    if node.thresholds is not None and aims:
        return f"given thresholds are kept, so {' and '.join(aims)} would do nothing; leave out either"
    if node.guarantee is not None:
        for below in _below(node, ensembles):
            if isinstance(below, Cascade) and below.guarantee is not None:
                return (
                    "a cascade with a guarantee holds another one, and both would be certified on the same "
                    "calibration rows; give the inner one a tolerance instead"
                )
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
