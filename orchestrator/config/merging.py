"""The step that makes one model of several."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from orchestrator.config.base import Settings
from orchestrator.config.training import StepTraining, Training, over

_HEAD = Training(epochs=2, lr=0.01)


class Merge(Settings):
    """Average the weights of the parent and other models of the same architecture, or put them side by side.

    Refused where the result is worse than its parts by more than `max_barrier`.
    """

    kind: Literal["merge"] = "merge"
    stage: ClassVar[int] = 0
    others: tuple[str, ...] = Field(min_length=1)
    """Refs or digests of the models to merge with; in a run file also names of its models."""
    method: Literal["uniform", "greedy", "slerp", "aligned", "side_by_side"] = "uniform"
    """Mean of all; mean of those that help on validation rows; a point on the arc between two; mean after
    the others' channels were put in the parent's order, for models that were not trained from one start; or
    all of them as they are in one large model, of any architectures, with a trained head."""
    training: Annotated[StepTraining, over(_HEAD)] = _HEAD
    """Of the head of side_by_side."""
    share: float = Field(0.5, gt=0, lt=1)
    """Of the other model, on the arc of slerp."""
    max_barrier: float = Field(0.1, ge=0)
    """Largest allowed loss on validation rows above the mean loss of the parts (cross-entropy, or squared
    error in units of the targets' variance)."""
    rows: int = Field(2048, ge=2)
    """Train rows that batch statistics are estimated on: merged weights do not have those of their parts."""

    @model_validator(mode="after")
    def _pair(self) -> Merge:
        if self.method == "slerp" and len(self.others) != 1:
            raise ValueError(f"slerp is between two models: give one of 'others', not {len(self.others)}")
        return self
