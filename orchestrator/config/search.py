"""What a search is told: its trials, the space of compression plans, the objectives and the promise."""

from __future__ import annotations

import operator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from orchestrator.config.base import Settings, absent
from orchestrator.config.free import Template, grid
from orchestrator.config.measure import Execution, Target
from orchestrator.config.space import Space, every_precision, plan_of, probes
from orchestrator.config.steps import EXECUTIONS, Distill, Plan, Recovery

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


class Population(Settings):
    """Population based training of recoveries (PBT).

    A batch is a generation, in which every member trains the epochs of the space's recovery. Then the worst
    members go on from one of the best instead of from their own weights, with settings that are changed a
    little.
    """

    kind: Literal["pbt"] = "pbt"
    quantile: float = Field(0.25, gt=0, le=0.5)
    """Share of the population that is replaced, and of the best that it is replaced from."""
    factors: tuple[float, ...] = Field((0.8, 1.25), min_length=1)
    """What a number is multiplied by, one of these by chance; of a choice the option before or after."""
    resample: float = Field(0.25, ge=0, le=1)
    """Probability that a value is drawn anew from the space instead."""

    @field_validator("factors")
    @classmethod
    def _positive(cls, factors: tuple[float, ...]) -> tuple[float, ...]:
        if min(factors) <= 0:
            raise ValueError("factors must be above 0")
        return factors


EarlyStop = Annotated[Halving | Median, Field(discriminator="kind")]


class Searching(Settings):
    """What every search says, whatever its trials do."""

    trials: int = Field(16, ge=1)
    minutes: float | None = Field(None, gt=0)
    """No trial begins when the search has taken so long, over all its starts; those that run are finished."""
    batch: int = Field(4, ge=1)
    """Trials suggested together from the sorted results of all earlier batches, with `overlap` of all but the
    last, so that a repeated search suggests the same."""
    overlap: bool = Field(False, exclude_if=operator.not_)
    """A batch begins while the one before still runs, suggested without its results: no core waits for the
    longest trial of a batch. On one machine trials rest after an epoch while latencies are measured."""
    sampler: Literal["tpe", "gp", "nsga2", "random", "grid"] | Population = "tpe"
    """Optuna's; `grid` goes through a finite space in order. `{kind: pbt}` trains a population."""
    space: Template
    latency: Target = Target()
    """What the search minimizes latency on."""
    targets: dict[str, Target] = Field(default_factory=dict)
    """Further targets by name: at the end all variants are measured there, too; each has its own front."""
    early_stop: EarlyStop | None = None
    """Which trials lose their remaining epochs; all finish when not given. What is stopped depends on which
    trial reports first, so two searches may differ."""
    max_latency_ms: float | None = Field(None, gt=0)
    """Variants that take longer a batch are infeasible, like those that lose more than is allowed on
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

    @property
    def allowed_drop(self) -> float | None:
        """How much worse than the parent on validation rows a variant may be; None for anything."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _a_grid_is_finite(self) -> Self:
        if self.sampler == "grid" and grid(self.space) is None:
            raise ValueError("sampler: grid needs a space of at most 10,000 plans: give each range a step")
        return self


class SearchSettings(Searching):
    """Ray Tune + Optuna over the space, on measured latency."""

    parent: str = "teacher"
    """Name of the model to compress."""
    siblings: int = Field(0, ge=0)
    """Of each batch, so many take a model that another trial trains and choose what follows its training
    anew: such a trial trains nothing. Half of them take one of their own batch, the others one of the best of
    their number type before it."""
    cheapest_of: int | None = Field(None, ge=2, le=10, exclude_if=absent)
    """Of so many suggestions that train, the one that trains least is taken, by its epochs and the operations
    that pruning leaves: more trainings in the same time. The first suggestion is taken when not given."""
    space: Space = Space()
    executions: tuple[Execution, ...] = Field(("aoti", "lowered", "eager"), min_length=1)
    """How variants run: each in the first of these that it can run in. AOTInductor takes seconds of compiling
    a variant; OpenVINO needs its package."""
    arms: bool = True
    """Also evaluate what anybody would try first (`search/arms.py`); it takes seconds of compiling."""
    small: Distill | None = None
    """A small net that the search must beat: trained by plain distillation and from labels alone."""
    promise: Promise = Promise()

    @property
    def allowed_drop(self) -> float:
        """That of the promise."""
        return self.promise.max_drop

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
        if self.cheapest_of and (self.sampler == "grid" or isinstance(self.sampler, Population)):
            raise ValueError("cheapest_of is for the samplers tpe, gp, nsga2 and random: remove it")
        return self

    @model_validator(mode="after")
    def _a_population_is_comparable(self) -> SearchSettings:
        if not isinstance(self.sampler, Population):
            return self
        if self.batch < 2:
            raise ValueError(f"sampler pbt: the batch is the population: at least 2, got {self.batch}")
        if self.siblings or self.early_stop is not None:
            raise ValueError("sampler pbt decides itself who goes on: remove siblings and early_stop")
        if self.overlap:
            raise ValueError("sampler pbt begins a generation from the whole one before: remove overlap")
        plans = [_without_recovery(plan_of(self.space, config)) for config in probes(self.space)]
        if len(plans) == 1 or any(plan != plans[0] or plan.count(None) != 1 for plan in plans):
            raise ValueError(
                "sampler pbt compares recoveries of one model: the plan of its space has one step 'recover', "
                "in whose training values are free, but not epochs, and no other free value"
            )
        return self


def _without_recovery(plan: Plan) -> list[dict[str, Any] | int | None]:
    """What members of a population share: of a recovery its epochs, after a mark."""
    shared: list[dict[str, Any] | int | None] = []
    for step in plan:
        shared += [None, step.training.epochs] if isinstance(step, Recovery) else [step.plain()]
    return shared
