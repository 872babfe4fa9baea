"""Compression steps. A plan is a tuple of steps, nothing else.

Each step's `stage` is a coarse place in the order `distill/merge < prune < recovery < clip < quantize`;
a plan whose stages do not rise is refused.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, TypeAdapter, model_validator

from orchestrator.config.base import Settings
from orchestrator.config.training import DistillationLoss, Training

Precision = Literal["fp32", "bf16", "int8_static", "int8_dynamic"]
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


class Recovery(Settings):
    """Fine-tune after a lossy step, by distillation from the parent unless `training.loss` says otherwise.

    Weights that an earlier magnitude pruning set to zero stay zero.
    """

    kind: Literal["recover"] = "recover"
    stage: ClassVar[int] = 20
    training: Training = Training(epochs=3, lr=0.02, loss=DistillationLoss())


class Bf16(Settings):
    """Weights and arithmetic in bfloat16; input scaling and outputs stay float32."""

    kind: Literal["bf16"] = "bf16"
    stage: ClassVar[int] = 40


class StaticInt8(Settings):
    """int8 weights and activations of convolutions and linears (PT2E, X86 quantizer).

    Activation ranges come from the calibration part.
    """

    kind: Literal["int8_static"] = "int8_static"
    stage: ClassVar[int] = 40
    rows: int = Field(256, ge=1)
    """Calibration rows."""


class DynamicInt8(Settings):
    """int8 weights of linears, activation ranges found at run time (PT2E, X86 quantizer)."""

    kind: Literal["int8_dynamic"] = "int8_dynamic"
    stage: ClassVar[int] = 40


Step = Annotated[
    ChannelPruning | MagnitudePruning | Recovery | Bf16 | StaticInt8 | DynamicInt8,
    Field(discriminator="kind"),
]
Plan = tuple[Step, ...]
PLAN: TypeAdapter[Plan] = TypeAdapter(Plan)
"""Reads a plan from plain values."""
