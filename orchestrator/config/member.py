"""What every member of an ensemble has, and the leaf; the kinds of ensembles are in `config.ensemble`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from orchestrator.config.base import Settings, absent
from orchestrator.config.calibration import Band, Calibration, Expectations, PredictionSets, Record, Reject
from orchestrator.config.measure import Execution
from orchestrator.config.model import ImportedModel, Mlp, ModelSettings
from orchestrator.config.training import JOINT_LOSSES, DistillationLoss, Resources, Training


class Child(Settings):
    """What every member of an ensemble has."""

    below: ClassVar[str | None] = None
    """Name of the field that holds the nodes below."""
    required: bool = False
    """The node above cannot answer without it, whatever that node's quorum."""

    def unfitted(self) -> str | None:
        """What is missing before it can answer, or None."""
        return None


def member_of_name(value: Any) -> Any:
    """A plain name, as a run file may write it, as a member; anything else as it is."""
    # With its kind as if it were written, so that a file that is made of what was set can be read.
    return Member(kind="member", name=value) if isinstance(value, str) else value


class Combined(Child):
    """What every ensemble has: its answer is made from those of the members or stages below it."""

    quorum: int | None = Field(None, ge=1)
    """How many of them must answer, or of a cascade's stages must work; all when not given."""
    fallback: Literal["best"] | None = Field(None, exclude_if=absent)
    """Of the root: below the quorum, the best of the members that answered every row answers alone."""
    calibration: Calibration | None = None
    """Of the combined answer; none when not given. Classification only."""
    prediction_sets: PredictionSets | None = Field(None, exclude_if=absent)
    """Of the root: sets of classes beside its answers, fitted on the calibration part. Classification."""
    intervals: Band | None = Field(None, exclude_if=absent)
    """Of the root: intervals around its values, fitted on the calibration part. Regression."""
    reject: Reject | None = Field(None, exclude_if=absent)
    """Of the root: which rows it would rather not answer, fitted on the validation part. Classification."""
    expected: Expectations | None = None
    """Filled in when the tree that this is the root of is fitted and has a quorum."""

    @model_validator(mode="after")
    def _quorum(self) -> Self:
        count = self._most()
        if self.quorum is not None and self.quorum > count:
            raise ValueError(f"a quorum of {self.quorum} needs as many members, got {count}")
        if self.fallback is not None and self.quorum is None:
            raise ValueError("a fallback needs a quorum: without one, nobody waits for the other members")
        for child in getattr(self, self.below or "", ()):
            if isinstance(child, Combined) and child.fallback is not None:
                raise ValueError("only the outermost ensemble can have a fallback")
        return self

    def _most(self) -> int:
        """How many members or stages it may come to have."""
        return len(getattr(self, self.below or "", ()))


class Member(Child):
    """A leaf: one artifact in one execution."""

    kind: Literal["member"] = "member"
    name: str
    digest: str = ""
    """Filled in when the ensemble is fitted."""
    execution: Execution = "eager"
    temperature: float | None = Field(None, gt=0)
    """Logits are divided by it before members are mixed; fitted on validation data when not given. A
    regression has none."""
    record: Record | None = None
    """Filled in when the ensemble is fitted and has a quorum."""
    sees: tuple[Member, ...] = Field((), exclude_if=lambda value: not value)
    """Of a chain's later model, filled in when it is trained: it gets the inputs beside what these say."""

    def unfitted(self) -> str | None:
        return None if self.digest else f"member {self.name} has no digest"


class Later(Settings):
    """A model of a chain that sees what those before it said, and how it is trained."""

    model: ModelSettings
    training: Training = Training()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _plain(self) -> Self:
        if not isinstance(self.model, Mlp | ImportedModel):
            raise ValueError(
                f"a later model sees rows of numbers, not images: take mlp or a factory of your own, "
                f"not {self.model.factory}"
            )
        loss = self.training.loss
        if self.training.snapshots is not None or isinstance(loss, JOINT_LOSSES):
            raise ValueError("a later model's training yields one model: no snapshots, no loss of several")
        if isinstance(loss, DistillationLoss) or self.training.transfer is not None:
            raise ValueError("a later model has no teacher: it learns from labels")
        return self
