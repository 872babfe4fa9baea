"""Ensembles as trees. The same classes are the run file's nodes and, once fitted, the served spec's.

In a run file a member may be a plain name: a model of the run, `chosen` (the variant that keeps the
promise), `fastest` (the fastest point of the front), or another ensemble of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from orchestrator.config.base import Settings
from orchestrator.config.calibration import Calibration, Expectations, Record, Survivors, Trend
from orchestrator.config.measure import Execution
from orchestrator.config.signature import Signature


class Child(Settings):
    """What every member of an ensemble has."""

    below: ClassVar[str | None] = None
    """Name of the field that holds the nodes below."""
    required: bool = False
    """The node above cannot answer without it, whatever that node's quorum."""


class Combined(Child):
    """What every ensemble has: its answer is made from those of the members or stages below it."""

    quorum: int | None = Field(None, ge=1)
    """How many of them must answer, or of a cascade's stages must work; all when not given."""
    calibration: Calibration | None = None
    """Of the combined answer; none when not given. Classification only."""
    expected: Expectations | None = None
    """Filled in when the tree that this is the root of is fitted and has a quorum."""

    @model_validator(mode="after")
    def _quorum(self) -> Self:
        count = len(getattr(self, self.below or "", ()))
        if self.quorum is not None and self.quorum > count:
            raise ValueError(f"a quorum of {self.quorum} needs as many members, got {count}")
        return self


class Pooled(Combined):
    """What ensembles have whose members all answer every row."""

    below: ClassVar[str | None] = "members"
    members: tuple[Node, ...] = Field(min_length=2)
    survivors: tuple[Survivors, ...] = ()
    """Filled in when it is fitted with a quorum: for each set of missing members of few."""
    trend: Trend | None = None
    """And of many: of the logarithm of the temperature."""


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

    def unfitted(self) -> str | None:
        """What is missing before it can answer, or None."""
        return None if self.digest else f"member {self.name} has no digest"


class Parallel(Pooled):
    """Every member answers every row; the answer is the mean probability (regression: the mean)."""

    kind: Literal["parallel"] = "parallel"

    def unfitted(self) -> str | None:
        """What is missing before it can answer, or None."""
        return None


class Cascade(Combined):
    """Cascade: a row goes to the next stage only while its top probability is below the stage's threshold.

    Each later stage replaces the answer (Viola and Jones 2001; Wang et al., https://arxiv.org/abs/2012.01988).
    """

    below: ClassVar[str | None] = "stages"
    kind: Literal["sequential"] = "sequential"
    policy: Literal["cascade"] = "cascade"
    stages: tuple[Node, ...] = Field(min_length=2)
    thresholds: tuple[float, ...] | None = None
    """One for each stage but the last; fitted on validation data when not given."""
    tolerance: float = Field(0.0, ge=0)
    """When fitting: the metric may be this much below the last stage's, in exchange for earlier exits."""

    @model_validator(mode="after")
    def _thresholds(self) -> Cascade:
        needed = len(self.stages) - 1
        if self.thresholds is not None and len(self.thresholds) != needed:
            raise ValueError(f"{needed + 1} stages need {needed} thresholds, got {len(self.thresholds)}")
        return self

    def unfitted(self) -> str | None:
        """What is missing before it can answer, or None."""
        return "sequential has no thresholds" if self.thresholds is None else None


class WeightedMix(Pooled):
    """Weighted mean of the members' probabilities (regression: outputs); weights are >= 0 and sum to 1."""

    kind: Literal["weighted_mix"] = "weighted_mix"
    weights: tuple[float, ...] | None = None
    """Fitted on validation data (least negative log-likelihood on the simplex) when not given."""

    @model_validator(mode="after")
    def _weights(self) -> WeightedMix:
        if self.weights is None:
            return self
        if len(self.weights) != len(self.members):
            raise ValueError(f"{len(self.members)} members need as many weights, got {len(self.weights)}")
        if min(self.weights) < 0 or abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(
                f"weights must be >= 0 and sum to 1, got {self.weights} (sum {sum(self.weights):.6g})"
            )
        return self

    def unfitted(self) -> str | None:
        """What is missing before it can answer, or None."""
        return "weighted_mix has no weights" if self.weights is None else None


def _member_of_name(value: Any) -> Any:
    return Member(name=value) if isinstance(value, str) else value


Sequential = Cascade
"""Stages one after the other, told apart by `policy`."""
AnyNode = Member | Parallel | Sequential | WeightedMix
Node = Annotated[Annotated[AnyNode, Field(discriminator="kind")], BeforeValidator(_member_of_name)]
PooledNode = Parallel | WeightedMix
"""Ensembles whose members all answer every row; functions for all of them are registered for this union."""
Ensemble = Annotated[Parallel | Sequential | WeightedMix, Field(discriminator="kind")]

for _class in (Pooled, Parallel, Cascade, WeightedMix):
    _class.model_rebuild()


class Spec(Settings):
    """A fitted ensemble tree: what `orchestrator serve` takes."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The model's name in the protocol."""
    tree: Ensemble
    signature: Signature
    weight_epoch: int = Field(0, ge=0)
    """Version of weights and thresholds; every answer names it."""
    batch: int = Field(32, ge=1)
    """Most rows that one member call takes at once."""
    threads: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _fitted(self) -> Spec:
        for node in walk_nodes(self.tree):
            if (missing := node.unfitted()) is not None:
                raise ValueError(f"{missing}: fit the ensemble first")
            if isinstance(node, Combined) and node.calibration is not None and not node.calibration.fitted:
                raise ValueError(f"{node.kind} is not calibrated: fit the ensemble first")
        return self


def children(node: AnyNode) -> tuple[Node, ...]:
    """The members or stages of a node; none of a leaf."""
    found: tuple[Node, ...] = () if node.below is None else getattr(node, node.below)
    return found


def with_children(node: AnyNode, found: Sequence[AnyNode]) -> AnyNode:
    """A node that is no leaf with other members or stages."""
    assert node.below is not None
    return node.model_copy(update={node.below: tuple(found)})


def walk_nodes(node: AnyNode) -> list[Node]:
    """The node and all below it, depth first, in file order."""
    return [node, *(below for child in children(node) for below in walk_nodes(child))]


def leaves(node: AnyNode) -> list[Member]:
    """All distinct leaves in file order."""
    return list(dict.fromkeys(found for found in walk_nodes(node) if isinstance(found, Member)))
