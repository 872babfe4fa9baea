"""What `orchestrator choose` is asked for: bounds that an answer must keep, and what a core is worth."""

from __future__ import annotations

from pydantic import Field, model_validator

from orchestrator.config.base import Settings
from orchestrator.config.serving import Placement


class Goal(Settings):
    """Bounds; one that is not given bounds nothing. Latencies are of one call of `batches` rows.

    With `max_drop` the fastest candidate within all bounds is the one to take, else the one of the best
    metric.
    """

    latency_ms: float | None = Field(None, gt=0)
    """Largest expected latency of a call."""
    p99_ms: float | None = Field(None, gt=0)
    """Largest 99th percentile of the latency of a call, waiting for others apart."""
    max_drop: float | None = Field(None, ge=0)
    """How much worse than the reference the metric may be, in its unit."""
    reference: str | None = None
    """A model of the run; the best uncompressed ensemble when not given."""
    max_bytes: int | None = Field(None, ge=1)
    """Of all members' artifacts."""
    cost_per_million: float | None = Field(None, gt=0)
    """Price of a million rows, in the currency of `Costs.core_hour`."""
    max_models_per_answer: int | None = Field(None, ge=1)
    """Members that one answer is made of. In a cascade the stage that answers counts alone: it replaces the
    earlier ones' answers."""
    single_model: bool = False
    """There must be one model to inspect."""
    min_robustness: float | None = None
    """Bound on the metric's mean over shifted rows: the least one, or the largest of an error metric."""

    def bounds(self) -> dict[str, float | bool | str]:
        """What was given, by name."""
        return self.model_dump(exclude_defaults=True)


class Costs(Settings):
    """How calls are made and what they cost."""

    batches: tuple[int, ...] = Field((32,), min_length=1)
    """Rows of a call; each is a candidate."""
    threads: int = Field(1, ge=1)
    placements: tuple[Placement, ...] = Field(("fused", "distributed"), min_length=1)
    core_hour: float = Field(0.04, gt=0)
    """Price of one core for an hour."""
    hop_ms: float = Field(3.0, ge=0)
    """What asking another deployment adds. Measured once: three small networks answered one image 3.0 ms
    later as deployments of their own than in one replica (5.4 and 2.4 ms, two cores)."""

    @model_validator(mode="after")
    def _batches(self) -> Costs:
        if min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            raise ValueError(f"batches must be at least 1 and differ, got {list(self.batches)}")
        return self
