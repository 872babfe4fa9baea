"""Gradients that a pruning criterion reads: of the loss on train rows, or their mean square over rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from orchestrator.compression.step import Context
from orchestrator.config.signature import Signature
from orchestrator.config.steps import ChannelPruning, HeadPruning
from orchestrator.config.training import Training
from orchestrator.errors import CompressionError
from orchestrator.training.losses import loss_settings, make_loss

_BATCH = 64


def set_gradients(
    module: nn.Module, step: ChannelPruning | HeadPruning, signature: Signature, context: Context
) -> None:
    """Fill `.grad` of every parameter.

    `taylor`: of the mean loss (Molchanov et al. 2019, https://arxiv.org/abs/1906.10771). `hessian`: the mean
    square over single rows, an estimate of the Hessian's diagonal (LeCun et al. 1989, Optimal Brain Damage).
    torch-pruning 1.6 has an accumulator for the latter that keeps the last row alone, so it is not used.

    Raises:
        CompressionError: there are no train rows, or they have no labels.
    """
    if step.criterion == "taylor":
        for _ in _backward(module, step, signature, context, _BATCH):
            pass
        module.cpu()
        return
    squares: dict[nn.Parameter, Tensor] = {}
    for rows in row_gradients(module, step, signature, context):
        for parameter in module.parameters():
            if parameter.grad is not None:
                # One row's share of the mean is 1 / N of its gradient.
                square = parameter.grad.square() * rows
                squares[parameter] = squares[parameter] + square if parameter in squares else square
    for parameter in module.parameters():
        parameter.grad = squares[parameter].cpu() if parameter in squares else torch.zeros_like(parameter)


def row_gradients(
    module: nn.Module, step: ChannelPruning | HeadPruning, signature: Signature, context: Context
) -> Iterator[int]:
    """Each train row by itself: meanwhile `.grad` holds its share of the mean loss's gradient.

    Yields:
        The number of rows.

    Raises:
        CompressionError: as `set_gradients`
    """
    for rows in _backward(module, step, signature, context, 1):
        yield rows
        module.zero_grad(set_to_none=True)
    module.cpu()


def _backward(
    module: nn.Module,
    step: ChannelPruning | HeadPruning,
    signature: Signature,
    context: Context,
    size: int,
) -> Iterator[int]:
    """Adds the gradients of `size` rows after another, on the context's device; how many rows there are."""
    if context.train is None or len(context.train.ids) == 0:
        raise CompressionError(
            f"criterion {step.criterion} needs train rows", fix="give the data a train part, or choose l2"
        )
    module.to(context.device)
    inputs = torch.tensor(context.train.inputs[: step.rows], device=context.device)
    targets = torch.as_tensor(context.train.targets[: step.rows]).to(context.device)
    if not _labelled(targets):
        raise CompressionError(f"criterion {step.criterion} needs labelled rows", fix="choose l2")
    loss = make_loss(loss_settings(Training(), signature), signature)
    module.zero_grad(set_to_none=True)
    for rows, wanted in zip(inputs.split(size), targets.split(size), strict=True):
        (loss(module(rows), wanted, None) * (len(rows) / len(inputs))).backward()
        yield len(inputs)


def _labelled(targets: Tensor) -> bool:
    return bool(((targets >= 0) if not targets.is_floating_point() else ~targets.isnan()).all())
