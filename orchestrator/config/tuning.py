"""The search for better training settings: a model whose values are free, and what bounds the choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, JsonValue, model_validator

from orchestrator.config.free import Pick, Scalar, Template, filled, parameters, value_of
from orchestrator.config.search import Population, Searching

_SORTS = ("factory", "kind")
"""Keys that say what the other keys of a mapping mean."""


class TrainingSpace(Template):
    """What a trial may choose: keys of `model` and `training` that take the place of the model's own.

    What is not named here stays as the model has it. A mapping that names another `factory` or `kind` stands
    for the model's whole mapping.
    """

    model: JsonValue = None
    """Like `{kwargs: {width: {choice: [8, 16]}}}`, or a choice of whole models."""
    training: JsonValue = None
    """Like `{lr: {range: [0.01, 0.3], log: true}}`."""

    def walk(self, pick: Pick) -> dict[str, JsonValue]:
        """As `Template.walk`: a mapping of `model` and `training`, without what is not named."""
        both = {"model": self.model, "training": self.training}
        return {name: value_of(value, name, pick) for name, value in both.items() if value is not None}

    @model_validator(mode="after")
    def _has_free_values(self) -> TrainingSpace:
        if not parameters(self):
            raise ValueError("nothing is free: put {choice: [...]} or {range: [low, high]} for some value")
        return self


class TrainingSearch(Searching):
    """`orchestrator search --stage training`: trains one model with many settings.

    Objectives are the run's metric on validation rows and the measured latency of the trained model, eager.
    """

    model: str = "teacher"
    """Name of the model; as the run file describes it, it is what every trial is compared with."""
    space: TrainingSpace
    max_drop: float | None = Field(None, ge=0)
    """Trials that lose more of the metric than this against the model as it is are infeasible, for a search
    that looks for faster models."""

    @model_validator(mode="after")
    def _no_population(self) -> TrainingSearch:
        if isinstance(self.sampler, Population):
            raise ValueError("sampler pbt is for recoveries: a search over trainings takes another one")
        return self

    @property
    def allowed_drop(self) -> float | None:
        """`max_drop`."""
        return self.max_drop

    @property
    def result(self) -> str:
        """Name of the best model in the store, behind that of the run."""
        return f"{self.model}-best"


def tuned(entry: Mapping[str, Any], settings: TrainingSearch, config: Mapping[str, Scalar]) -> dict[str, Any]:
    """The plain values of a model's entry with what a config chose, on the resources of a trial.

    A teacher is left out where the chosen loss does not follow one.
    """
    chosen = filled(settings.space, config)
    found: dict[str, Any] = merged(dict(entry), chosen)
    resources = {"cpus": settings.cpus, "gpus": settings.gpus}
    found["resources"] = {name: value for name, value in resources.items() if value}
    training = found.get("training")  # not validated yet: anything may stand in these places
    loss = training.get("loss") if isinstance(training, dict) else None
    if not (isinstance(loss, dict) and loss.get("kind") == "distillation"):
        found.pop("teacher", None)
    return found


def merged(base: Any, over: Any) -> Any:
    """`over` laid upon `base`, mapping by mapping; one that names another factory or kind stands alone."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    if any(sort in over and over[sort] != base.get(sort) for sort in _SORTS):
        return over
    return {
        **base,
        **{key: merged(base[key], value) if key in base else value for key, value in over.items()},
    }
