"""The space of compression plans, the objectives and the promise."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from orchestrator.config.base import Settings
from orchestrator.config.measure import Execution, LatencySettings
from orchestrator.config.steps import EXECUTIONS, Criterion, Precision, Recovery


class Uniform(Settings):
    """A number between `low` and `high`, on a grid of `step` when given, or on a log scale."""

    kind: Literal["uniform"] = "uniform"
    low: float
    high: float
    step: float | None = Field(None, gt=0)
    log: bool = False

    @model_validator(mode="after")
    def _order(self) -> Uniform:
        if not self.low <= self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a log scale needs low > 0 and no step")
        return self


class Choice(Settings):
    """One of the values."""

    kind: Literal["choice"] = "choice"
    values: tuple[float, ...] = Field(min_length=1)


Numbers = Annotated[Uniform | Choice, Field(discriminator="kind")]


class Space(Settings):
    """What a trial may choose. `temperature` is asked for only when something was pruned."""

    amount: Numbers = Choice(values=(0.0, 0.25, 0.5))
    """Share of channels to prune; 0 leaves the model whole."""
    criterion: tuple[Criterion, ...] = Field(("l2", "lamp", "fpgm"), min_length=1)
    precision: tuple[Precision, ...] = Field(("fp32", "bf16", "int8_static", "int8_dynamic"), min_length=1)
    temperature: Numbers = Choice(values=(1.0, 4.0))
    """Of the distillation that recovers a pruned model."""

    @model_validator(mode="after")
    def _in_range(self) -> Space:
        low, high = _ends(self.amount)
        if low < 0 or high >= 1:
            raise ValueError(f"amount is a share of channels: 0 <= amount < 1, got {low:g} to {high:g}")
        if _ends(self.temperature)[0] <= 0:
            raise ValueError(f"temperature must be > 0, got {_ends(self.temperature)[0]:g}")
        return self


def _ends(numbers: Uniform | Choice) -> tuple[float, float]:
    if isinstance(numbers, Choice):
        return min(numbers.values), max(numbers.values)
    return numbers.low, numbers.high


class Promise(Settings):
    """The chosen variant is not worse than its parent by more than `max_drop`.

    Decided by a one-sided, paired non-inferiority test on the contract part.
    """

    max_drop: float = Field(0.01, ge=0)
    """Largest allowed loss, in the metric's own unit (accuracy: 0.01 is one point)."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    max_class_drop: float | None = Field(None, ge=0)
    """Classification: also the largest allowed loss of recall of any one class."""
    max_changed: float | None = Field(None, ge=0, le=1)
    """Classification: also the largest allowed share of rows that get another class than the parent's."""
    looks: int = Field(4, ge=1)
    """Most variants that the contract part is asked about."""


class SearchSettings(Settings):
    """Ray Tune + Optuna over the space, on measured latency."""

    parent: str = "teacher"
    """Name of the model to compress."""
    trials: int = Field(16, ge=1)
    batch: int = Field(4, ge=1)
    """Trials suggested together from the sorted results of all earlier batches, so that a repeated search
    suggests the same."""
    sampler: Literal["tpe", "random", "nsga2"] = "tpe"
    space: Space = Space()
    recovery: Recovery = Recovery()
    """Fine-tuning of a pruned variant; the space sets its temperature."""
    executions: tuple[Execution, ...] = Field(("aoti", "lowered", "eager"), min_length=1)
    """How variants run: each in the first of these that it can run in. AOTInductor takes seconds of compiling
    a variant; OpenVINO needs its package."""
    latency: LatencySettings = LatencySettings()
    promise: Promise = Promise()
    cpus: int = Field(1, ge=1)
    """Cores, and so threads, a trial trains with."""
    gpus: float = Field(0, ge=0)
    driver: Literal["tune", "pool"] = "tune"
    """What runs the trials: Ray Tune, or a pool of warm Ray actors, which loses less time between trials of
    seconds. The result is the same."""

    @model_validator(mode="after")
    def _every_precision_runs(self) -> SearchSettings:
        for precision in self.space.precision:
            if not set(EXECUTIONS[precision]) & set(self.executions):
                raise ValueError(
                    f"executions: {precision} runs in none of {', '.join(self.executions)}; "
                    f"add {' or '.join(EXECUTIONS[precision])}"
                )
        return self
