"""Steps that remove channels or weights."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from orchestrator.config.base import Settings
from orchestrator.config.constraints import NofM
from orchestrator.config.training import StepTraining

Criterion = Literal["l1", "l2", "lamp", "fpgm", "bn_scale", "taylor", "hessian", "random"]


class ChannelPruning(Settings):
    """Remove whole channels and features, coupled layers together (DepGraph, https://arxiv.org/abs/2301.12900)."""

    kind: Literal["prune_channels"] = "prune_channels"
    stage: ClassVar[int] = 10
    amount: float | None = Field(None, gt=0, lt=1)
    """Share of channels to remove (operations fall by about the square)."""
    macs: float | None = Field(None, gt=0, lt=1)
    """Or: remove as few channels as leave at most this share of the operations."""
    params: float | None = Field(None, gt=0, lt=1)
    """Or: of the parameters."""
    latency: float | None = Field(None, gt=0, lt=1)
    """Or: of the latency, measured here and now in turns with the whole model (eager, 32 rows, one thread).
    The result is measured once more and recorded, so it may lie off by what measurements differ."""
    shares: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(default_factory=dict)
    """With `amount` and scope layer: other shares for layers whose names match a pattern, such as
    `body.1*: 0.25`; the first that matches counts, for all layers that share the channels; 0 leaves them."""
    criterion: Criterion = "l2"
    """taylor and hessian need labelled train rows."""
    scope: Literal["global", "isomorphic", "layer"] = "layer"
    """Rank channels over the whole model, over layers of the same structure
    (https://arxiv.org/abs/2407.04616), or remove the same share in each layer."""
    round_to: int = Field(4, ge=1)
    """Keep channel counts at a multiple of this."""
    rows: int = Field(256, ge=1)
    """Train rows that taylor and hessian look at."""
    rounds: int = Field(1, ge=1)
    """Remove the channels in so many parts, each with fresh scores and as far on the way to `amount`, `macs`
    or `params` as the others. Not with `latency`: a run that goes on would measure, and so cut, anew."""
    recovery: StepTraining | None = None
    """Fine-tuning between two rounds; after the last one the plan's own recovery follows."""

    @model_validator(mode="after")
    def _one(self) -> ChannelPruning:
        targets = (self.amount, self.macs, self.params, self.latency)
        if sum(given is not None for given in targets) != 1:
            raise ValueError("give one of 'amount', 'macs', 'params' and 'latency'")
        if self.recovery is not None and self.rounds == 1:
            raise ValueError("'recovery' is for the pauses between rounds: set rounds to 2 or more")
        if self.shares and (self.amount is None or self.scope != "layer" or self.rounds > 1):
            raise ValueError("'shares' goes with 'amount', scope layer and one round")
        if self.rounds > 1 and self.latency is not None:
            raise ValueError("'rounds' goes with 'amount', 'macs' or 'params', not with 'latency'")
        return self


class HeadPruning(Settings):
    """Remove whole attention heads (Michel et al. 2019, https://arxiv.org/abs/1905.10650)."""

    kind: Literal["prune_heads"] = "prune_heads"
    stage: ClassVar[int] = 12
    amount: float = Field(gt=0, lt=1)
    """Share of the heads to remove; each layer keeps one."""
    criterion: Literal["taylor", "l1", "l2", "hessian", "random"] = "taylor"
    """taylor: how much the loss depends on a gate before the head's output; hessian: on the head's weights.
    Both need labelled train rows."""
    scope: Literal["global", "layer"] = "layer"
    """Remove the same share in each layer, or rank all heads together."""
    rows: int = Field(256, ge=1)
    """Train rows that taylor and hessian look at."""


class VocabularyPruning(Settings):
    """Forget tokens that few train rows have: a text model then sees the unknown token in their place.

    As in Abdaoui et al. 2020 (https://arxiv.org/abs/2010.05609), who keep the tokens of a language.
    """

    kind: Literal["prune_vocabulary"] = "prune_vocabulary"
    stage: ClassVar[int] = 13
    least: int = Field(2, ge=1)
    """Train rows that must have a token."""


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
    n_of_m: NofM | None = None
    """Or: of each M weights that lie side by side along a layer's input the N largest stay."""

    @model_validator(mode="after")
    def _one(self) -> MagnitudePruning:
        if sum(given is not None for given in (self.threshold, self.amount, self.n_of_m)) != 1:
            raise ValueError("give one of 'threshold', 'amount' and 'n_of_m'")
        if self.scope == "layer" and self.amount is None:
            raise ValueError("'scope: layer' goes with 'amount'")
        return self
