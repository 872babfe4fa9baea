"""Steps that remove channels or weights."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from orchestrator.config.base import Settings

Criterion = Literal["l1", "l2", "lamp", "fpgm", "bn_scale", "random"]


class ChannelPruning(Settings):
    """Remove whole channels and features, coupled layers together (DepGraph, https://arxiv.org/abs/2301.12900)."""

    kind: Literal["prune_channels"] = "prune_channels"
    stage: ClassVar[int] = 10
    amount: float = Field(gt=0, lt=1)
    """Share of channels to remove (operations fall by about the square)."""
    criterion: Criterion = "l2"
    scope: Literal["global", "layer"] = "layer"
    """Rank channels over the whole model, or remove the same share in each layer."""
    round_to: int = Field(4, ge=1)
    """Keep channel counts at a multiple of this."""


class MagnitudePruning(Settings):
    """Set small weights to zero: smaller when packed, not faster on dense kernels."""

    kind: Literal["prune_magnitude"] = "prune_magnitude"
    stage: ClassVar[int] = 10
    threshold: float | None = Field(None, gt=0)
    """Weights of smaller absolute value become zero."""
    amount: float | None = Field(None, gt=0, lt=1)
    """Or: this share of all convolution and linear weights, smallest first."""

    @model_validator(mode="after")
    def _one(self) -> MagnitudePruning:
        if (self.threshold is None) == (self.amount is None):
            raise ValueError("give either 'threshold' or 'amount'")
        return self
