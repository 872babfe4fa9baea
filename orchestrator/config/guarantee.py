"""What a cascade promises, and what became of it."""

from __future__ import annotations

from pydantic import Field

from orchestrator.config.base import Settings


class Guarantee(Settings):
    """What a cascade promises beside its last stage, on rows that nothing was fitted on.

    With probability `confidence` over the calibration rows, at most the share `max_loss` of all rows loses
    the right answer of the last stage by leaving early. Accuracy then falls by at most `max_loss`, too.
    """

    max_loss: float = Field(0.005, gt=0, lt=1)
    confidence: float = Field(0.9, gt=0, lt=1)


class Certificate(Settings):
    """What the calibration rows said about a guarantee."""

    granted: bool
    """Whether early exits keep the guarantee; if not, no row leaves early."""
    rows: int = Field(ge=1)
    lost: int = Field(ge=0)
    """Of these rows, how many lost the last stage's right answer: at the granted thresholds, or else at the
    most careful ones that let a row leave."""
    p_value: float = Field(ge=0, le=1)
    """Of "more than `max_loss` is lost" at those thresholds; at most 1 - `confidence` when granted."""
