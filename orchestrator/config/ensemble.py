"""Ensembles as trees. The same classes are the run file's nodes and, once fitted, the served spec's.

In a run file a member may be a plain name: a model of the run, `chosen` (the variant that keeps the
promise), `fastest` (the fastest point of the front), or another ensemble of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from orchestrator.config.base import Settings
from orchestrator.config.measure import Execution
from orchestrator.config.signature import Signature


class Member(Settings):
    """A leaf: one artifact in one execution."""

    below: ClassVar[str | None] = None
    kind: Literal["member"] = "member"
    name: str
    digest: str = ""
    """Filled in when the ensemble is fitted."""
    execution: Execution = "eager"
    temperature: float | None = Field(None, gt=0)
    """Logits are divided by it before members are mixed; fitted on validation data when not given. A
    regression has none."""

    def unfitted(self) -> str | None:
        """What is missing before it can answer, or None."""
        return None if self.digest else f"member {self.name} has no digest"


class Parallel(Settings):
    """Every member answers every row; the answer is the mean probability (regression: the mean)."""

    below: ClassVar[str | None] = "members"
    kind: Literal["parallel"] = "parallel"
    members: tuple[Node, ...] = Field(min_length=2)

    def unfitted(self) -> str | None:
        """What is missing before it can answer, or None."""
        return None


class Cascade(Settings):
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


class WeightedMix(Settings):
    """Weighted mean of the members' probabilities (regression: outputs); weights are >= 0 and sum to 1."""

    below: ClassVar[str | None] = "members"
    kind: Literal["weighted_mix"] = "weighted_mix"
    members: tuple[Node, ...] = Field(min_length=2)
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
Ensemble = Annotated[Parallel | Sequential | WeightedMix, Field(discriminator="kind")]

for _class in (Parallel, Cascade, WeightedMix):
    _class.model_rebuild()


class Spec(Settings):
    """A fitted ensemble tree: what `orchestrator serve` takes."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The model's name in the protocol."""
    tree: Node
    """An ensemble, or one member: then there is one model to serve."""
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
