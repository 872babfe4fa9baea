"""Distillation: a lossy step's model from its parent, or a fresh student from one or several teachers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.compression.step import (
    Context,
    Other,
    State,
    apply_step,
    copy_of,
    masks_of,
    metric_of,
)
from orchestrator.config.steps import Distill, Recovery, epochs_of, others_of
from orchestrator.config.training import DistillationLoss, Training
from orchestrator.data.dataset import Part
from orchestrator.errors import CompressionError
from orchestrator.models.build import build, example_rows
from orchestrator.training.batches import Teacher, Views
from orchestrator.training.checkpoint import Checkpoint
from orchestrator.training.features import Hinted
from orchestrator.training.loop import initialize, train
from orchestrator.training.state import TrainState
from orchestrator.training.teacher import as_kept


@apply_step.register
def recover(step: Recovery, state: State, context: Context) -> State:
    """Train on; the teacher is the model that the plan started from. Zeroed weights stay zero.

    The optimizer is a fresh one: one made before pruning would train the tensors that were cut away.

    Raises:
        CompressionError: train or validation rows are missing.
        TrainingError: the training fails.
    """
    module = copy_of(state.module)
    before = itertools.takewhile(lambda one: isinstance(one, Recovery), reversed(state.plan))
    first = epochs_of(list(before))
    epochs = fine_tune(
        module, step.training, state, context, checkpoint=context.checkpoint, first_epoch=first
    )
    return state.after(step, module.eval(), {"epochs": epochs})


def fine_tune(
    module: nn.Module,
    training: Training,
    state: State,
    context: Context,
    teacher: Teacher | None = None,
    checkpoint: Checkpoint | None = None,
    first_epoch: int = 0,
) -> int:
    """Train a module in place; the number of epochs.

    A distillation loss follows `teacher`, or the model that the plan started from when none is given. With a
    `checkpoint` the training goes on after the epoch that is kept there, and gives the same weights. Row
    order and augmentation are those of a training's epochs from `first_epoch` on.

    Raises:
        CompressionError: train or validation rows are missing.
        TrainingError: the training fails.
    """
    if context.train is None or context.validation is None:
        raise CompressionError("recovery needs train and validation rows", fix="give the data both parts")
    if teacher is None and isinstance(training.loss, DistillationLoss):
        parent = Other(state.parent, state.model, state.parent_outputs)
        every = training.model_copy(update={"epochs": first_epoch + training.epochs})
        teacher = _teacher([parent], every, state, context.device)
    hinted = _hinted(module, training, state, context.train)
    progress = (checkpoint.load() if checkpoint is not None else None) or TrainState()
    reports = train(
        hinted or module,
        context.train,
        context.validation,
        training,
        signature=state.signature,
        metric=metric_of(context, state.signature),
        seed=context.seed,
        threads=context.threads,
        device=context.device,
        teacher=teacher,
        masks=_masks(module, state, hinted),
        state=progress,
        first_epoch=first_epoch,
        allowed=context.allowed,
    )
    try:
        for report in reports:
            if checkpoint is not None:
                checkpoint.save(progress)
            if context.on_epoch is not None:
                context.on_epoch(report)
    finally:
        if hinted is not None:
            hinted.release()
        module.cpu()
    return progress.epoch


def _hinted(module: nn.Module, training: Training, state: State, train_part: Part) -> Hinted | None:
    """The student with its teacher at its side, where the loss compares layers: the parent is the teacher."""
    if not isinstance(training.loss, DistillationLoss) or not training.loss.features:
        return None
    initialize(module, train_part)  # inside `Hinted` the loop would not find its scaling
    rows = example_rows(state.signature, 2)
    return Hinted(module, copy_of(state.parent()), training.loss.features, rows)


def _masks(module: nn.Module, state: State, hinted: Hinted | None) -> dict[str, Tensor] | None:
    """Read when a training begins: a step since the one that made the zeros may have cut the weights."""
    masks = masks_of(module, state.plan, state.sparse)
    if hinted is None or masks is None:
        return masks
    return {f"student.{name}": mask for name, mask in masks.items()}


@apply_step.register
def distill(step: Distill, state: State, context: Context) -> State:
    """Train a fresh student on the mixed outputs of the parent and other models, or on an ensemble's answers.

    Hinton et al. 2015 (https://arxiv.org/abs/1503.02531); the teachers are mixed as a weighted mix mixes its
    members, so the student learns what the ensemble answers. Each teacher's outputs are kept apart in the
    store: with other weights, or in another ensemble, no teacher runs again.

    Raises:
        CompressionError: train or validation rows are missing.
        ModelError: the student cannot be built for these rows.
        TrainingError: the training fails.
    """
    student = build(step.model, state.signature, allowed=context.allowed, seed=context.seed)
    teachers = [context.other(name) for name in others_of(step)]
    if step.ensemble is None:
        teachers = [Other(state.parent, state.model, state.parent_outputs), *teachers]
    ones = (1.0,) * len(teachers)
    teacher = _teacher(
        teachers, step.training, state, context.device, step.weights or ones, step.temperatures or ones
    )
    # The student shares nothing with the parent's form: what was done to that is not replayed on it, and its
    # zeros bind the student to nothing.
    fresh = replace(state, plan=(), decisions=(), sparse=False, given=False)
    epochs = fine_tune(student, step.training, fresh, context, teacher, context.checkpoint)
    return fresh.after(step, student.eval(), {"epochs": epochs}, model=step.model)


def mixed(
    outputs: Sequence[Tensor], weights: Sequence[float], temperatures: Sequence[float], task: str
) -> Tensor:
    """What a weighted mix answers: logits [N, K] of the mean probability, or mean values.

    Args:
        outputs: of each teacher [N, K]: logits, or values.
        weights: one a teacher; only their ratios count.
        temperatures: one a teacher: its logits are divided by it. A regression ignores them.
        task: of the signature.

    Raises:
        CompressionError: the teachers have different numbers of outputs.
    """
    if len(outputs) == 1:
        return outputs[0] if task == "regression" else outputs[0] / temperatures[0]
    if len(shapes := {tuple(one.shape) for one in outputs}) > 1:
        raise CompressionError(
            "teachers give outputs of different shapes", sorted(shapes), "name teachers of the same classes"
        )
    shares = torch.tensor(weights, dtype=torch.float64, device=outputs[0].device) / sum(weights)
    stacked = torch.stack([one.double() for one in outputs])
    if task == "regression":
        return torch.einsum("m,mnk->nk", shares, stacked).float()
    divisors = torch.tensor(temperatures, dtype=torch.float64, device=stacked.device)[:, None, None]
    logs = shares.log()[:, None, None]
    if task == "multilabel":
        odds = stacked / divisors
        there, missing = ((logs + functional.logsigmoid(one)).logsumexp(0) for one in (odds, -odds))
        return (there - missing).float()
    return ((stacked / divisors).log_softmax(-1) + logs).logsumexp(0).float()


def _teacher(
    teachers: Sequence[Other],
    training: Training,
    state: State,
    device: str,
    weights: Sequence[float] = (1.0,),
    temperatures: Sequence[float] = (1.0,),
) -> Teacher:
    """The teachers' mixed outputs: from the store where all are kept there, else by running them."""
    task = state.signature.task

    def mix(outputs: Sequence[Tensor]) -> Tensor:
        return mixed(outputs, weights, temperatures, task)

    if all(teacher.outputs is not None for teacher in teachers):
        kept = [teacher.outputs(training) for teacher in teachers if teacher.outputs is not None]
        return Views(
            kept[0].count,
            lambda view: mix([torch.from_numpy(one.read(view)) for one in kept]).numpy(),
        )
    modules = [teacher.module().to(device).eval() for teacher in teachers]

    def outputs(rows: Tensor) -> Tensor:
        with torch.no_grad():
            return mix([as_kept(module(rows), task).float() for module in modules])

    return outputs
