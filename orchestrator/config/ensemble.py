"""Ensembles as trees. The same classes are the run file's nodes and, once fitted, the served spec's.

In a run file a member may be a plain name: a model of the run, `chosen` (the variant that keeps the
promise), `fastest` (the fastest point of the front), or another ensemble of the run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from orchestrator.config.base import Settings
from orchestrator.config.measure import Execution
from orchestrator.config.signature import Signature


class Member(Settings):
    """A leaf: one artifact in one execution."""

    kind: Literal["member"] = "member"
    name: str
    digest: str = ""
    """Filled in when the ensemble is fitted."""
    execution: Execution = "eager"
    temperature: float | None = Field(None, gt=0)
    """Logits are divided by it before members are mixed; fitted on validation data when not given. A
    regression has none."""


class Parallel(Settings):
    """Every member answers every row; the answer is the mean probability (regression: the mean)."""

    kind: Literal["parallel"] = "parallel"
    members: tuple[Node, ...] = Field(min_length=2)


class Sequential(Settings):
    """Cascade: a row goes to the next stage only while its top probability is below the stage's threshold.

    Each later stage replaces the answer (Viola and Jones 2001; Wang et al., https://arxiv.org/abs/2012.01988).
    """

    kind: Literal["sequential"] = "sequential"
    policy: Literal["cascade"] = "cascade"
    stages: tuple[Node, ...] = Field(min_length=2)
    thresholds: tuple[float, ...] | None = None
    """One for each stage but the last; fitted on validation data when not given."""
    tolerance: float = Field(0.0, ge=0)
    """When fitting: the metric may be this much below the last stage's, in exchange for earlier exits."""

    @model_validator(mode="after")
    def _thresholds(self) -> Sequential:
        needed = len(self.stages) - 1
        if self.thresholds is not None and len(self.thresholds) != needed:
            raise ValueError(f"{needed + 1} stages need {needed} thresholds, got {len(self.thresholds)}")
        return self


class WeightedMix(Settings):
    """Weighted mean of the members' probabilities (regression: outputs); weights are >= 0 and sum to 1."""

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


def _member_of_name(value: Any) -> Any:
    return Member(name=value) if isinstance(value, str) else value


Node = Annotated[
    Annotated[Member | Parallel | Sequential | WeightedMix, Field(discriminator="kind")],
    BeforeValidator(_member_of_name),
]
Ensemble = Annotated[Parallel | Sequential | WeightedMix, Field(discriminator="kind")]

for _class in (Parallel, Sequential, WeightedMix):
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
            if isinstance(node, Member) and not node.digest:
                raise ValueError(f"member {node.name} has no digest: fit the ensemble first")
            if isinstance(node, WeightedMix) and node.weights is None:
                raise ValueError("weighted_mix has no weights: fit the ensemble first")
            if isinstance(node, Sequential) and node.thresholds is None:
                raise ValueError("sequential has no thresholds: fit the ensemble first")
        return self


def children(node: Member | Parallel | Sequential | WeightedMix) -> tuple[Node, ...]:
    """The members or stages of a node; none of a leaf."""
    if isinstance(node, Member):
        return ()
    return node.stages if isinstance(node, Sequential) else node.members


def walk_nodes(node: Member | Parallel | Sequential | WeightedMix) -> list[Node]:
    """The node and all below it, depth first, in file order."""
    return [node, *(below for child in children(node) for below in walk_nodes(child))]


def leaves(node: Member | Parallel | Sequential | WeightedMix) -> list[Member]:
    """All distinct leaves in file order."""
    return list(dict.fromkeys(found for found in walk_nodes(node) if isinstance(found, Member)))
