"""Losses: one settings class, one function. A loss is a parameter of the training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from orchestrator.config.imports import resolve
from orchestrator.config.signature import Signature, Task
from orchestrator.config.training import (
    BinaryCrossEntropy,
    CrossEntropy,
    CustomLoss,
    DistillationLoss,
    LossSettings,
    MeanSquaredError,
    MutualLoss,
    NegativeCorrelation,
    Training,
)
from orchestrator.data.dataset import rows_of_class
from orchestrator.errors import ConfigError

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`(outputs [B, K], targets [B], [B, K] or [B, T], teacher outputs [B, K] or None) -> scalar`."""


_OWN: dict[Task, LossSettings] = {
    "classification": CrossEntropy(),
    "multilabel": BinaryCrossEntropy(),
    "regression": MeanSquaredError(),
}


def loss_settings(training: Training, signature: Signature) -> LossSettings:
    """The loss of a training run: the one it names, or the task's own."""
    if training.loss is not None:
        return training.loss
    return _OWN[signature.task]


@singledispatch
def make_loss(settings: object, signature: Signature, allowed: Collection[str] = ()) -> Loss:  # noqa: ARG001
    """The loss that `settings` describe.

    Args:
        settings: one of `orchestrator.config.training.LossSettings`.
        signature: of the model; its `target_std` scales regression losses.
        allowed: import paths that a custom loss may come from.

    Raises:
        ConfigError: the loss does not fit the task.
        ModelError: a custom loss is not allowed or cannot be imported.
    """
    raise ConfigError("no such loss", type(settings).__name__, "register it with make_loss.register")


@make_loss.register
def _(settings: CrossEntropy, signature: Signature, allowed: Collection[str] = ()) -> Loss:  # noqa: ARG001
    _needs("classification", signature, "cross_entropy")
    if settings.class_weights is None:

        def loss(outputs: Tensor, targets: Tensor, teacher: Tensor | None) -> Tensor:  # noqa: ARG001
            return functional.cross_entropy(outputs, targets, label_smoothing=settings.label_smoothing)

        return loss
    weights = _one_a_class(settings.class_weights, signature)

    def weighted(outputs: Tensor, targets: Tensor, teacher: Tensor | None) -> Tensor:  # noqa: ARG001
        rows = functional.cross_entropy(
            outputs, targets, label_smoothing=settings.label_smoothing, reduction="none"
        )
        # Over the number of rows, not of weights: a batch of rare classes then counts as much as it should.
        return (weights.to(rows.device)[targets] * rows).mean()

    return weighted


def weighed(settings: LossSettings, targets: NDArray[Any], classes: int) -> LossSettings:
    """`class_weights: balanced` as numbers, from the classes [N] or labels [N, K] that are learned from."""
    if not isinstance(settings, CrossEntropy | BinaryCrossEntropy) or settings.class_weights != "balanced":
        return settings
    counts = rows_of_class(targets, classes)
    if isinstance(settings, BinaryCrossEntropy):
        found = np.maximum(len(targets) - counts, 1) / np.maximum(counts, 1)
    else:
        found = counts.sum() / (classes * np.maximum(counts, 1))
    return settings.model_copy(update={"class_weights": tuple(np.where(counts, found, 1.0).tolist())})


def _one_a_class(weights: Sequence[float] | str, signature: Signature) -> Tensor:
    if isinstance(weights, str) or len(weights) != signature.outputs:
        raise ConfigError(
            "class_weights must be one number a class", weights, f"there are {signature.outputs}"
        )
    return torch.tensor(weights)


@make_loss.register
def _(settings: BinaryCrossEntropy, signature: Signature, allowed: Collection[str] = ()) -> Loss:  # noqa: ARG001
    _needs("multilabel", signature, "binary_cross_entropy")
    given = settings.class_weights
    weights = None if given is None else _one_a_class(given, signature)

    def loss(outputs: Tensor, targets: Tensor, teacher: Tensor | None) -> Tensor:  # noqa: ARG001
        factors = None if weights is None else weights.to(outputs.device)
        return functional.binary_cross_entropy_with_logits(
            outputs, targets.to(outputs.dtype), pos_weight=factors
        )

    return loss


@make_loss.register
def _(settings: MeanSquaredError, signature: Signature, allowed: Collection[str] = ()) -> Loss:  # noqa: ARG001
    _needs("regression", signature, "mse")
    deviation = _deviation(signature)

    def loss(outputs: Tensor, targets: Tensor, teacher: Tensor | None) -> Tensor:  # noqa: ARG001
        return _scaled_error(outputs, targets, deviation).mean()

    return loss


@make_loss.register
def _(settings: DistillationLoss, signature: Signature, allowed: Collection[str] = ()) -> Loss:  # noqa: ARG001
    """Hinton et al. 2015, section 2 (https://arxiv.org/abs/1503.02531).

    `T^2` keeps the size of the soft term's gradient when the temperature changes. A row without a label
    (class or label below 0, or a NaN target) takes the teacher's term with full weight.
    """
    if signature.task == "classification":
        rows_of = _soft_classes(settings)
    elif signature.task == "multilabel":
        rows_of = _soft_labels(settings)
    else:
        rows_of = _soft_values(_deviation(signature))

    def loss(outputs: Tensor, targets: Tensor, teacher: Tensor | None) -> Tensor:
        if teacher is None:
            raise ConfigError("a distillation loss needs the teacher's outputs", fix="name a teacher")
        soft, hard, labelled = rows_of(outputs, targets, teacher)
        mixed = settings.weight * soft + (1 - settings.weight) * hard
        return torch.where(labelled, mixed, soft).mean()

    return loss


@make_loss.register
def _(settings: CustomLoss, signature: Signature, allowed: Collection[str] = ()) -> Loss:  # noqa: ARG001
    """The user's own function, on outputs and targets in raw units."""
    function = resolve(settings.loss, allowed)

    def loss(outputs: Tensor, targets: Tensor, teacher: Tensor | None) -> Tensor:  # noqa: ARG001
        value = function(outputs, targets, **settings.kwargs)
        if not isinstance(value, Tensor) or value.ndim != 0:
            raise ConfigError("a custom loss must return a scalar tensor", settings.loss)
        return value

    return loss


@make_loss.register
def _(settings: MutualLoss, signature: Signature, allowed: Collection[str] = ()) -> Loss:  # noqa: ARG001
    """On outputs [B, M * K] of M models."""
    apart = _models_apart(signature)

    def loss(outputs: Tensor, targets: Tensor, teacher: Tensor | None) -> Tensor:  # noqa: ARG001
        members, own, _ = apart(outputs, targets)
        given = members.detach()
        if signature.task == "classification":
            # KL(j || i) [B, M, M]: cross-entropy of i under j, less j's entropy.
            probabilities = given.exp()
            entropy = -(probabilities * given).sum(2)
            gaps = -torch.einsum("bjk,bik->bij", probabilities, members) - entropy[:, None]
        else:
            gaps = (members[:, :, None] - given[:, None]).square().mean(3)
        others = members.shape[1] - 1
        return own.mean(0).sum() + settings.weight * gaps.mean(0).sum() / others  # a gap to itself is 0

    return loss


@make_loss.register
def _(settings: NegativeCorrelation, signature: Signature, allowed: Collection[str] = ()) -> Loss:  # noqa: ARG001
    """On outputs [B, M * K] of M models."""
    apart = _models_apart(signature)

    def loss(outputs: Tensor, targets: Tensor, teacher: Tensor | None) -> Tensor:  # noqa: ARG001
        members, own, mean = apart(outputs, targets)
        ambiguity = own.mean() - mean.mean()
        return own.mean(0).sum() - settings.weight * members.shape[1] * ambiguity

    return loss


_Apart = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""`(outputs [B, M * K], targets) -> (members [B, M, K], their losses [B, M], their mean's loss [B])`. Members
are log-probabilities, or values in units of each target's deviation."""


def _models_apart(signature: Signature) -> _Apart:
    deviation = _deviation(signature) if signature.task == "regression" else None

    def apart(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        members = outputs.unflatten(1, (-1, signature.outputs))
        count = members.shape[1]
        if count == 1:
            raise ConfigError("this loss needs several models", fix="give 'together' or 'copies'")
        if deviation is not None:
            units = deviation.to(outputs.device)
            members, targets = members / units, targets / units
            own = (members - targets[:, None]).square().mean(2)
            return members, own, (members.mean(1) - targets).square().mean(1)
        members = members.log_softmax(2)
        at_label = members.gather(2, targets[:, None, None].expand(-1, count, 1)).squeeze(2)
        return members, -at_label, math.log(count) - at_label.logsumexp(1)

    return apart


_Rows = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""`(outputs, targets, teacher) -> (soft [B], hard [B], labelled [B])`."""


def _soft_classes(settings: DistillationLoss) -> _Rows:
    temperature = settings.temperature

    def divergence(outputs: Tensor, teacher: Tensor) -> Tensor:
        student_log = functional.log_softmax(outputs / temperature, dim=1)
        teacher_log = functional.log_softmax(teacher / temperature, dim=1)
        return temperature**2 * (teacher_log.exp() * (teacher_log - student_log)).sum(dim=1)

    def rows(outputs: Tensor, targets: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mse = settings.form == "mse"
        soft = (outputs - teacher).square().mean(dim=1) if mse else divergence(outputs, teacher)
        hard = functional.cross_entropy(outputs, targets.clamp(min=0), reduction="none")
        return soft, hard, targets >= 0

    return rows


def _soft_labels(settings: DistillationLoss) -> _Rows:
    temperature, cross_entropy = settings.temperature, functional.binary_cross_entropy_with_logits

    def rows(outputs: Tensor, targets: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if settings.form == "mse":
            soft = (outputs - teacher).square()
        else:
            chances = (teacher / temperature).sigmoid()
            soft = temperature**2 * cross_entropy(outputs / temperature, chances, reduction="none")
        truth = targets.clamp(min=0).to(outputs.dtype)
        hard = cross_entropy(outputs, truth, reduction="none")
        return soft.mean(dim=1), hard.mean(dim=1), (targets >= 0).all(dim=1)

    return rows


def _soft_values(deviation: Tensor) -> _Rows:
    def rows(outputs: Tensor, targets: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        labelled = ~targets.isnan().any(dim=1)
        # NaN must not reach the graph: where() would still pass its gradient on as NaN.
        known = torch.where(labelled[:, None], targets, outputs.detach())
        soft = _scaled_error(outputs, teacher, deviation).mean(dim=1)
        hard = _scaled_error(outputs, known, deviation).mean(dim=1)
        return soft, hard, labelled

    return rows


def _deviation(signature: Signature) -> Tensor:
    """Each target's deviation [T]; 1 for a constant target."""
    deviation = torch.tensor(signature.target_std)
    return torch.where(deviation > 0, deviation, torch.ones_like(deviation))


def _scaled_error(outputs: Tensor, targets: Tensor, deviation: Tensor) -> Tensor:
    """Squared error in units of each target's deviation (the mean cancels out)."""
    return ((outputs - targets) / deviation.to(outputs.device)).square()


def _needs(task: str, signature: Signature, loss: str) -> None:
    if signature.task != task:
        raise ConfigError(
            f"loss {loss} needs task {task}", signature.task, "leave 'loss' out for the default"
        )
