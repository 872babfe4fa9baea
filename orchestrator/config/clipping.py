"""The step that limits the size of weights."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from orchestrator.config.base import Settings


class Clipping(Settings):
    """Cut weights of convolutions and linears to [-limit, limit]: few bits then resolve the rest better."""

    kind: Literal["clip"] = "clip"
    stage: ClassVar[int] = 30
    method: Literal["threshold", "percentile", "mse"] = "mse"
    """A given limit; a percentile of the absolute weights; or the limit of the least squared error after
    rounding to `bits`."""
    threshold: float | None = Field(None, gt=0)
    """The limit of method threshold."""
    percentile: float = Field(99.9, gt=0, lt=100)
    """Share of the weights, in percent, that method percentile leaves as they are."""
    bits: int = Field(8, ge=2, le=8)
    """Of the integers that method mse rounds to."""
    per: Literal["tensor", "channel"] = "channel"
    """One limit a layer, or one an output channel (of a transposed convolution, an input channel)."""

    @model_validator(mode="after")
    def _needed(self) -> Clipping:
        if (self.method == "threshold") != (self.threshold is not None):
            raise ValueError("'threshold' goes with 'method: threshold'")
        return self
