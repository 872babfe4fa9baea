"""The step that trains another model on the outputs of one or several."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from orchestrator.config.base import Settings, absent
from orchestrator.config.model import ModelSettings, SideBySide
from orchestrator.config.training import DistillationLoss, StepTraining, Training, over

_STUDENT = Training(loss=DistillationLoss())


class Distill(Settings):
    """Train a fresh, smaller model on what the parent and other models answer together, or an ensemble."""

    kind: Literal["distill"] = "distill"
    stage: ClassVar[int] = 0
    model: ModelSettings
    """The student."""
    others: tuple[str, ...] = ()
    """More teachers: refs or digests, in a run file also names of its models."""
    ensemble: str | None = Field(None, exclude_if=absent)
    """The only teacher, the parent left out: ref or digest of a fitted ensemble of any kind, in a run file
    also the name of one of its ensembles."""
    weights: tuple[float, ...] | None = None
    """Of the teachers, the parent first, as in a weighted mix; equal when not given."""
    temperatures: tuple[float, ...] | None = None
    """That each teacher's logits are divided by before they are mixed; 1 when not given."""
    training: Annotated[StepTraining, over(_STUDENT)] = _STUDENT

    @model_validator(mode="after")
    def _lengths(self) -> Distill:
        if self.ensemble is not None and (self.others or self.weights or self.temperatures):
            raise ValueError("'ensemble' is the only teacher: leave out 'others', 'weights', 'temperatures'")
        teachers = 1 + len(self.others)
        for name, given in (("weights", self.weights), ("temperatures", self.temperatures)):
            if given is not None and len(given) != teachers:
                raise ValueError(f"'{name}' needs {teachers} numbers, the parent's first, got {len(given)}")
        if self.weights is not None and (min(self.weights) < 0 or sum(self.weights) <= 0):
            raise ValueError(f"'weights' must be >= 0 and not all 0, got {list(self.weights)}")
        if self.temperatures is not None and min(self.temperatures) <= 0:
            raise ValueError(f"'temperatures' must be > 0, got {list(self.temperatures)}")
        if isinstance(self.model, SideBySide):
            raise ValueError("side_by_side is no student: merge trains no members")
        if not isinstance(self.training.loss, DistillationLoss):
            raise ValueError("'training.loss' must be of kind distillation")
        if self.ensemble is not None and self.training.loss.features:
            raise ValueError("an ensemble has no layers to follow: remove 'training.loss.features'")
        return self
