"""The step that splits layers into products of thin ones."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from orchestrator.config.base import Settings


class Factorization(Settings):
    """Replace linears and convolutions by two thin layers each where that saves operations (SVD)."""

    kind: Literal["factorize"] = "factorize"
    stage: ClassVar[int] = 14
    energy: float | None = Field(None, gt=0, lt=1)
    """Share of the squared singular values that a layer keeps."""
    rank: float | None = Field(None, gt=0, lt=1)
    """Or: share of the full rank that a layer keeps."""

    @model_validator(mode="after")
    def _one(self) -> Factorization:
        if (self.energy is None) == (self.rank is None):
            raise ValueError("give either 'energy' or 'rank'")
        return self
