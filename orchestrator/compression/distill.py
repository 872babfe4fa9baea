"""Recovery: fine-tune after a lossy step, with the parent as teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.compression.step import Context, State, apply_step, copy_of
from orchestrator.config.measure import Metric
from orchestrator.config.steps import Recovery
from orchestrator.config.training import DistillationLoss, Training
from orchestrator.errors import CompressionError
from orchestrator.training.batches import Teacher
from orchestrator.training.loop import train


@apply_step.register
def recover(step: Recovery, state: State, context: Context) -> State:
    """Train on; the teacher is the model that the plan started from. Zeroed weights stay zero.

    The optimizer is a fresh one: one made before pruning would train the tensors that were cut away.

    Raises:
        CompressionError: train or validation rows are missing.
        TrainingError: the training fails.
    """
    module = copy_of(state.module)
    epochs = fine_tune(module, step.training, state, context)
    return state.after(step, module.eval(), {"epochs": epochs})


def fine_tune(module: nn.Module, training: Training, state: State, context: Context) -> int:
    """Train a module in place, with the plan's origin as teacher; the number of epochs.

    Raises:
        CompressionError: train or validation rows are missing.
        TrainingError: the training fails.
    """
    if context.train is None or context.validation is None:
        raise CompressionError("recovery needs train and validation rows", fix="give the data both parts")
    if training.transfer is not None:
        raise CompressionError("recovery trains on the train part", "training.transfer", "remove the key")
    metric = context.metric or Metric(name="accuracy" if state.signature.task == "classification" else "rmse")
    reports = train(
        module,
        context.train,
        context.validation,
        training,
        signature=state.signature,
        metric=metric,
        seed=context.seed,
        threads=context.threads,
        teacher=_teacher(training, state) if isinstance(training.loss, DistillationLoss) else None,
        masks=state.masks,
        allowed=context.allowed,
    )
    epochs = 0
    for report in reports:
        epochs = report.epoch + 1
        if context.on_epoch is not None:
            context.on_epoch(report)
    return epochs


def _teacher(training: Training, state: State) -> Teacher:
    if state.parent_outputs is not None:
        return state.parent_outputs(training)
    module = state.parent().eval()

    def outputs(rows: Tensor) -> Tensor:
        with torch.no_grad():
            result: Tensor = module(rows)
        return result

    return outputs
