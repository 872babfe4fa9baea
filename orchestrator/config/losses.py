"""Losses that do not fit the task, wherever a run file names one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from orchestrator.config.ensemble import AnyNode, Chain, walk_nodes
from orchestrator.config.free import probes
from orchestrator.config.search import SearchSettings
from orchestrator.config.signature import Task
from orchestrator.config.space import plan_of
from orchestrator.config.steps import Step
from orchestrator.config.training import TASK_LOSSES, Training
from orchestrator.config.variant import VariantEntry

Placed = Iterator[tuple[str, Training]]


def loss_complaint(training: Training, task: Task) -> str | None:
    """What is wrong with the loss of a training, or None."""
    loss, losses = training.loss, TASK_LOSSES[task]
    if loss is None or loss.kind in losses:
        return None
    return f"{loss.kind} is not for task {task}: use {', '.join(losses)}"


def losses_complaint(
    task: Task,
    models: Mapping[str, Training],
    variants: Mapping[str, VariantEntry],
    search: SearchSettings | None,
    ensembles: Mapping[str, AnyNode],
) -> str | None:
    """What is wrong with the first such loss, behind its place, or None."""
    for place, training in _trainings(models, variants, search, ensembles):
        if (complaint := loss_complaint(training, task)) is not None:
            return f"{place}.loss: {complaint}"
    return None


def _trainings(
    models: Mapping[str, Training],
    variants: Mapping[str, VariantEntry],
    search: SearchSettings | None,
    ensembles: Mapping[str, AnyNode],
) -> Placed:
    for name, training in models.items():
        yield f"models.{name}.training", training
    for name, entry in variants.items():
        yield from _of_steps(f"variants.{name}.plan", entry.plan)
    if search is not None:
        for config in probes(search.space):
            yield from _of_steps("search.space.plan", plan_of(search.space, config))
        if search.small is not None:
            yield "search.small.training", search.small.training
    for name, tree in ensembles.items():
        for node in walk_nodes(tree):
            if isinstance(node, Chain):
                yield from ((f"ensembles.{name}.later", later.training) for later in node.later)


def _of_steps(place: str, plan: Sequence[Step]) -> Placed:
    for step in plan:
        for key in ("training", "recovery"):
            training: Training | None = getattr(step, key, None)
            if training is not None:
                yield f"{place}.{step.kind}.{key}", training
