"""What training asks of the weights besides the loss: few of them, or whole channels near zero."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from orchestrator.config.base import Settings, absent


def _fewer(n_of_m: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= n_of_m[0] < n_of_m[1]:
        raise ValueError(f"n_of_m is [N, M] with 1 <= N < M, got {list(n_of_m)}")
    return n_of_m


NofM = Annotated[tuple[int, int], AfterValidator(_fewer)]
"""How many of each M weights stay, and M."""


class Sparsify(Settings):
    """Prune single weights gradually: Zhu and Gupta 2017 (https://arxiv.org/abs/1710.01878).

    The share of zeros rises from 0 at `start` to `amount` at `end`, fast at first:
    `amount * (1 - (1 - t)^3)`. Of N of M it is the number of zeros among each M, rounded.
    """

    amount: float | None = Field(None, gt=0, lt=1)
    """Share of the convolution and linear weights that are zero in the end."""
    n_of_m: NofM | None = Field(None, exclude_if=absent)
    """Or: of each M weights that lie side by side along a layer's input the N largest stay."""
    scope: Literal["global", "layer"] = "global"
    """Rank all weights together for `amount`, or remove the same share of each layer."""
    start: float = Field(0.1, ge=0, lt=1)
    """Share of the steps after which pruning begins."""
    end: float = Field(0.7, gt=0, le=1)
    """And ends: the rest of the training recovers."""
    every: int = Field(20, ge=1)
    """Steps between two choices of further zeros."""

    @model_validator(mode="after")
    def _order(self) -> Sparsify:
        if (self.amount is None) == (self.n_of_m is None):
            raise ValueError("give one of 'amount' and 'n_of_m'")
        if self.scope == "layer" and self.amount is None:
            raise ValueError("'scope: layer' goes with 'amount'")
        if self.start >= self.end:
            raise ValueError(f"'start' must lie before 'end', got {self.start} and {self.end}")
        return self


class Penalty(Settings):
    """A term of the loss that drives weights to zero, so that pruning later costs little.

    `l1`: sum of absolute convolution and linear weights. `group_lasso`: sum over output channels of their
    norm times the root of their size (Wen et al. 2016, https://arxiv.org/abs/1608.03665). `bn_scale`: sum
    of absolute batch norm scales (Liu et al. 2017, https://arxiv.org/abs/1708.06519).
    """

    kind: Literal["l1", "group_lasso", "bn_scale"]
    strength: float = Field(gt=0)
    """Factor of the sum."""
