"""What the earlier stages of a boosting say: a new stage's outputs are added to it while it is trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.config.signature import Signature
from orchestrator.training.batches import Views
from orchestrator.training.losses import Loss
from orchestrator.training.teacher import TeacherCache


@dataclass(frozen=True)
class Offset:
    """Sums of earlier stages' outputs, each times its factor."""

    train: Views
    """Of the train rows, [N, K] in each view."""
    validation: Views
    """Of the validation rows, in one view: reports are about the whole sum."""


@dataclass(frozen=True)
class StageCaches:
    """Where the outputs of the stages before are kept, each with the stage's factor."""

    train: list[tuple[TeacherCache, float]]
    validation: list[tuple[TeacherCache, float]]

    def caches(self) -> list[TeacherCache]:
        """All of them, to be filled before `offset` is read."""
        return [cache for cache, _ in (*self.train, *self.validation)]

    def offset(self) -> Offset:
        """The sums, worked out when they are asked for."""
        return Offset(_sum(self.train), _sum(self.validation))


def _sum(stages: list[tuple[TeacherCache, float]]) -> Views:
    outputs = [(cache.outputs(), factor) for cache, factor in stages]

    def read(view: int) -> NDArray[np.float32]:
        return np.asarray(sum(factor * own.read(view) for own, factor in outputs), dtype=np.float32)

    return Views(outputs[0][0].count, read)


def added(loss: Loss) -> Loss:
    """The loss of the sum: of a regression that is the loss on residuals, of a classification its gradient
    at the sum is what the stage learns from (Friedman 2001)."""

    def of_sum(outputs: Tensor, targets: Tensor, before: Tensor | None) -> Tensor:
        assert before is not None
        return loss(outputs + before, targets, None)

    return of_sum


def of_stage(signature: Signature) -> Signature:
    """Of a model that corrects others: its values lie around zero, not around the targets' mean."""
    return signature.model_copy(update={"target_mean": (0.0,) * len(signature.target_mean)})
