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
    stage: ClassVar[int] = 16
    threshold: float | None = Field(None, gt=0)
    """Weights of smaller absolute value become zero."""
    amount: float | None = Field(None, gt=0, lt=1)
    """Or: this share of the convolution and linear weights, smallest first."""
    scope: Literal["global", "layer"] = "global"
    """Rank all weights together for `amount`, or remove the same share of each layer."""
    n_of_m: tuple[int, int] | None = None
    """Or: of each M weights that lie side by side along a layer's input the N largest stay."""

    @model_validator(mode="after")
    def _one(self) -> MagnitudePruning:
        if sum(given is not None for given in (self.threshold, self.amount, self.n_of_m)) != 1:
            raise ValueError("give one of 'threshold', 'amount' and 'n_of_m'")
        if self.scope == "layer" and self.amount is None:
            raise ValueError("'scope: layer' goes with 'amount'")
        if self.n_of_m is not None and not 1 <= self.n_of_m[0] < self.n_of_m[1]:
            raise ValueError(f"n_of_m is [N, M] with 1 <= N < M, got {list(self.n_of_m)}")
        return self
