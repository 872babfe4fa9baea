"""The space of compression plans, the objectives and the promise."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from orchestrator.config.base import Settings
from orchestrator.config.measure import Execution, Target
from orchestrator.config.space import Space, every_precision, grid
from orchestrator.config.steps import EXECUTIONS, Distill

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
LabelName = Annotated[str, Field(pattern=rf"^(?:[A-Za-z0-9.-]{{1,253}}/)?{_LABEL}$")]
"""Of a Ray node, like `ray.io/market-type`."""
LabelSelector = Annotated[str, Field(pattern=rf"^!?(?:{_LABEL}|in\({_LABEL}(?:, ?{_LABEL})*\))$")]


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


class Halving(Settings):
    """Asynchronous successive halving on the epochs of recoveries (ASHA)."""

    kind: Literal["halving"] = "halving"
    grace: int = Field(1, ge=1)
    """Epochs before a trial may be stopped; the next looks are `factor` times as far each."""
    factor: int = Field(3, ge=2)
    """Of the trials that cost no more, the best of so many goes on."""


class Median(Settings):
    """Stop a trial that falls behind the median of those that cost no more."""

    kind: Literal["median"] = "median"
    grace: int = Field(1, ge=1)
    """Epochs before a trial may be stopped."""
    least: int = Field(3, ge=1)
    """Trials that there must be to compare with."""


EarlyStop = Annotated[Halving | Median, Field(discriminator="kind")]


class SearchSettings(Settings):
    """Ray Tune + Optuna over the space, on measured latency."""

    parent: str = "teacher"
    """Name of the model to compress."""
    trials: int = Field(16, ge=1)
    batch: int = Field(4, ge=1)
    """Trials suggested together from the sorted results of all earlier batches, so that a repeated search
    suggests the same."""
    siblings: int = Field(0, ge=0)
    """Of each batch, so many take a trained model that an earlier trial left, one of the best of their number
    type, and choose what follows its training anew: such a trial trains nothing."""
    sampler: Literal["tpe", "gp", "nsga2", "random", "grid"] = "tpe"
    """Optuna's; `grid` goes through a finite space in order."""
    space: Space = Space()
    executions: tuple[Execution, ...] = Field(("aoti", "lowered", "eager"), min_length=1)
    """How variants run: each in the first of these that it can run in. AOTInductor takes seconds of compiling
    a variant; OpenVINO needs its package."""
    latency: Target = Target()
    """What the search minimizes latency on."""
    targets: dict[str, Target] = Field(default_factory=dict)
    """Further targets by name: at the end all variants are measured there, too; each has its own front."""
    early_stop: EarlyStop | None = None
    """Which trials lose their remaining epochs; all finish when not given. What is stopped depends on which
    trial reports first, so two searches may differ."""
    arms: bool = True
    """Also evaluate what anybody would try first (`search/arms.py`); it takes seconds of compiling."""
    small: Distill | None = None
    """A small net that the search must beat: trained by plain distillation and from labels alone."""
    promise: Promise = Promise()
    max_latency_ms: float | None = Field(None, gt=0)
    """Variants that take longer a batch are infeasible, like those that lose more than `promise.max_drop` on
    validation rows."""
    max_bytes: int | None = Field(None, ge=1)
    """Or are larger."""
    cpus: int = Field(1, ge=1)
    """Cores, and so threads, a trial trains with."""
    gpus: float = Field(0, ge=0)
    memory_bytes: int = Field(0, ge=0)
    """Memory that a trial asks Ray for, so that no node takes more trials than it can hold; Ray does not
    enforce it."""
    labels: dict[LabelName, LabelSelector] = Field(default_factory=dict)
    """Node labels that a trial asks for: a value, `!value`, `in(a, b)` or `!in(a, b)` by name."""
    driver: Literal["tune", "pool"] = "tune"
    """What runs the trials: Ray Tune, or a pool of warm Ray actors, which loses less time between trials of
    seconds. The result is the same."""

    @model_validator(mode="after")
    def _every_precision_runs(self) -> SearchSettings:
        for precision in every_precision(self.space):
            if not set(EXECUTIONS[precision]) & set(self.executions):
                raise ValueError(
                    f"executions: {precision} runs in none of {', '.join(self.executions)}; "
                    f"add {' or '.join(EXECUTIONS[precision])}"
                )
        return self

    @model_validator(mode="after")
    def _a_batch_has_news(self) -> SearchSettings:
        if self.siblings >= self.batch:
            raise ValueError(f"siblings ({self.siblings}) must be fewer than the batch ({self.batch})")
        if self.siblings and self.sampler == "grid":
            raise ValueError("siblings are for samplers that choose: a grid has them all in its order")
        return self

    @model_validator(mode="after")
    def _a_grid_is_finite(self) -> SearchSettings:
        if self.sampler == "grid" and grid(self.space) is None:
            raise ValueError("sampler: grid needs a space of at most 10,000 plans: give each range a step")
        return self
