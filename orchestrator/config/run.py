"""The whole run file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError, model_validator

from orchestrator.config.base import Settings
from orchestrator.config.data import DataSettings
from orchestrator.config.ensemble import (
    VALUE_RULES,
    AnyNode,
    Boosting,
    Cascade,
    Combined,
    Ensemble,
    Member,
    Parallel,
    PooledNode,
    Stacking,
    stage_names,
    walk_nodes,
)
from orchestrator.config.free import first_complaint, probes
from orchestrator.config.imports import ImportPath
from orchestrator.config.measure import (
    CLASSIFICATION_METRICS,
    REGRESSION_METRICS,
    Execution,
    LatencySettings,
    Metric,
)
from orchestrator.config.model import ModelSettings, SideBySide
from orchestrator.config.search import SearchSettings
from orchestrator.config.serving import ServingSettings
from orchestrator.config.steps import Plan
from orchestrator.config.tracking import MlflowTracking
from orchestrator.config.training import DistillationLoss, Resources, Training
from orchestrator.config.tuning import TrainingSearch, tuned

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
"""Becomes part of refs, file names and URLs."""
FRONT_NAMES = ("chosen", "fastest")
"""Names that the search gives to points of its front."""
_PATH_KEYS = ("factory", "loss", "dataset", "transform", "name")


class ModelEntry(Settings):
    """A model of the run: trained here, or one that is already in the store."""

    model: ModelSettings | None = None
    training: Training = Training()
    teacher: str | None = None
    """Model whose outputs a distillation loss follows."""
    resources: Resources = Resources()
    ref: str | None = None
    """An imported model (`orchestrator import`); it is not trained."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelEntry:
        if (self.model is None) == (self.ref is None):
            raise ValueError("give either 'model' (trained here) or 'ref' (already in the store)")
        if isinstance(self.training.loss, DistillationLoss) != (self.teacher is not None):
            raise ValueError("a distillation loss and 'teacher' go together")
        if isinstance(self.model, SideBySide):
            raise ValueError("side_by_side trains its head alone: train its members, then use step 'merge'")
        if isinstance(self.training.loss, DistillationLoss) and self.training.loss.features:
            raise ValueError("'features' of a distillation loss are for the steps recover, distill and qat")
        if self.training.transfer is not None and self.teacher is None:
            raise ValueError("a transfer set needs a distillation loss and 'teacher'")
        return self


class VariantEntry(Settings):
    """A variant that the file itself describes, beside those of the search."""

    parent: str
    """A model, or a variant above this one."""
    plan: Plan = Field(min_length=1)
    """Steps in rising order; `others` in a step are models or variants of this file, refs or digests."""
    execution: Execution | None = None
    """lowered after int8, else eager, when not given."""
    cpus: int = Field(1, ge=1)
    """Cores, and so threads, of its steps."""
    gpus: float = Field(0, ge=0)


class RunConfig(Settings):
    """Train, compress, ensemble, evaluate and serve: everything one run does."""

    name: Name
    seed: int = Field(0, ge=0, lt=2**31)
    allow: tuple[ImportPath, ...] = ()
    """Import paths that imported models may be built from, besides those that this file names itself."""
    data: DataSettings
    metric: Metric = Metric()
    models: dict[Name, ModelEntry] = Field(min_length=1)
    variants: dict[Name, VariantEntry] = Field(default_factory=dict)
    training_search: TrainingSearch | None = None
    """`orchestrator search --stage training`; no other command looks at it."""
    search: SearchSettings | None = None
    ensembles: dict[Name, Ensemble] = Field(default_factory=dict)
    latency: LatencySettings = LatencySettings()
    """How models and ensembles are measured for the final table."""
    serving: ServingSettings | None = ServingSettings()
    tracking: MlflowTracking | None = None
    """A server that is told of the run, besides the files that TensorBoard reads."""

    @model_validator(mode="before")
    @classmethod
    def _default_metric(cls, value: Any) -> Any:
        data = value.get("data") if isinstance(value, dict) else None
        if isinstance(data, dict) and data.get("task") == "regression" and "metric" not in value:
            return {**value, "metric": {"name": "rmse"}}
        return value

    @model_validator(mode="after")
    def _names(self) -> RunConfig:
        for name, entry in self.models.items():
            if name in FRONT_NAMES:
                raise ValueError(f"model name '{name}' is reserved for the search's front")
            if entry.teacher is not None and (entry.teacher not in self.models or entry.teacher == name):
                raise ValueError(f"models.{name}.teacher: no other model is named '{entry.teacher}'")
        self._no_teacher_cycle()
        self._variant_names()
        if self.search is not None and self.search.parent not in self.models:
            raise ValueError(
                f"search.parent: no model is named '{self.search.parent}'; models: {', '.join(self.models)}"
            )
        self._ensemble_names()
        self._tuned_models()
        of_task = REGRESSION_METRICS if self.data.task == "regression" else CLASSIFICATION_METRICS
        if ":" not in self.metric.name and self.metric.name not in of_task:
            raise ValueError(f"metric {self.metric.name} does not fit task {self.data.task}")
        return self

    def _no_teacher_cycle(self) -> None:
        for start in self.models:
            seen, name = {start}, self.models[start].teacher
            while name is not None:
                if name in seen:
                    raise ValueError(f"models.{start}.teacher: the teachers form a circle")
                seen.add(name)
                name = self.models[name].teacher

    def _variant_names(self) -> None:
        known = [*self.models, *FRONT_NAMES]
        for name, entry in self.variants.items():
            if name in known:
                raise ValueError(f"variants.{name}: the name is already taken")
            if entry.parent not in known or entry.parent in FRONT_NAMES:
                above = ", ".join(other for other in known if other not in FRONT_NAMES)
                raise ValueError(f"variants.{name}.parent: '{entry.parent}' is none of {above}")
            known.append(name)

    def _ensemble_names(self) -> None:
        known = [*self.models, *self.variants, *(FRONT_NAMES if self.search else ())]
        for ensemble, tree in self.ensembles.items():
            if ensemble in known:
                raise ValueError(f"ensembles.{ensemble}: the name is already taken")
            for node in walk_nodes(tree):
                if isinstance(node, Member) and node.name not in known:
                    here = ", ".join(known)
                    raise ValueError(f"ensembles.{ensemble}: no member is named '{node.name}'; known: {here}")
                complaint = self._needs_classifier(node) if self.data.task == "regression" else None
                if isinstance(node, Cascade):
                    complaint = complaint or self._cascade_complaint(node)
                if isinstance(node, Stacking) and node.folds is not None:
                    complaint = complaint or self._folds_complaint(ensemble, node)
                if isinstance(node, Boosting):
                    complaint = complaint or self._boosting_complaint(ensemble, node)
                if complaint is not None:
                    raise ValueError(f"ensembles.{ensemble}: {complaint}")
            known.append(ensemble)

    @staticmethod
    def _needs_classifier(node: AnyNode) -> str | None:
        """What a regression's ensembles cannot have."""
        if isinstance(node, Parallel) and node.rule not in VALUE_RULES:
            return f"rule {node.rule} needs a classifier; a regression takes {', '.join(VALUE_RULES)}"
        if isinstance(node, Cascade):
            return "a cascade needs a classifier: a regression's values are not sure or unsure"
        if isinstance(node, Combined) and node.calibration is not None:
            return f"calibration {node.calibration.kind} needs a classifier; leave it out"
        return None

    def _cascade_complaint(self, node: Cascade) -> str | None:
        """What would be ignored or fail once the cascade is fitted. Names are those of ensembles above."""
        aims = [key for key in ("tolerance", "max_cost", "guarantee") if getattr(node, key) is not None]
        if node.thresholds is not None and aims:
            return f"given thresholds are kept, so {' and '.join(aims)} would do nothing; leave out either"
        if node.criterion == "agreement":
            for stage in node.stages[:-1]:
                found = self.ensembles.get(stage.name, stage) if isinstance(stage, Member) else stage
                if not isinstance(found, PooledNode):
                    name = stage.name if isinstance(stage, Member) else stage.kind
                    return (
                        f"criterion agreement: stage {name} has no members that could agree; let every "
                        "stage but the last be parallel, weighted_mix or stacking, or use confidence"
                    )
        return None

    def _boosting_complaint(self, ensemble: str, node: Boosting) -> str | None:
        """Stages are trained as models of the run, under names that start with the ensemble's."""
        base = self.models.get(node.base)
        if base is None:
            return f"base: no model is named '{node.base}'; models: {', '.join(self.models)}"
        if base.ref is not None or base.teacher is not None:
            return f"base: '{node.base}' must be trained here and from labels, without 'ref' and 'teacher'"
        if self.ensembles[ensemble] is not node:
            return "boosting stands in an ensemble of its own, which this one may name as a member"
        taken = {*self.models, *self.variants, *self.ensembles} & set(stage_names(ensemble, node)[1:])
        return f"the name '{min(taken)}' is that of a stage; choose another" if taken else None

    def _folds_complaint(self, ensemble: str, node: Stacking) -> str | None:
        """Members are trained again without some rows, so they must be models that are trained here."""
        if self.ensembles[ensemble] is not node:
            return "a stack with folds stands in an ensemble of its own, which this one may name as a member"
        for member in node.members:
            entry = self.models.get(member.name) if isinstance(member, Member) else None
            if entry is None or entry.ref is not None or entry.teacher is not None:
                name = member.name if isinstance(member, Member) else member.kind
                return f"folds: member '{name}' must be a model that is trained here, without 'teacher'"
        return None

    def _tuned_models(self) -> None:
        """Every option and both ends of every range must make a model that can be trained."""
        settings = self.training_search
        if settings is None:
            return
        if settings.model not in self.models:
            known = ", ".join(self.models)
            raise ValueError(f"training_search.model: no model is named '{settings.model}'; models: {known}")
        base = self.models[settings.model]
        if base.ref is not None:
            raise ValueError(f"training_search.model: '{settings.model}' is not trained here, it has a 'ref'")
        if settings.result in (*self.models, *self.variants, *self.ensembles):
            raise ValueError(f"the name '{settings.result}' is that of the training search's result")
        for config in probes(settings.space):
            try:
                entry = ModelEntry.model_validate(tuned(base.plain(), settings, config))
            except ValidationError as error:
                raise ValueError(f"training_search.space: {first_complaint(error, config)}") from error
            if entry.training.transfer != base.training.transfer:
                raise ValueError("training_search.space: the rows of a transfer set cannot be free")

    def allowed(self) -> frozenset[str]:
        """Every import path that this file names: the only code of the user's that may run."""
        found = set(self.allow)

        def visit(value: Any) -> None:
            if isinstance(value, dict):
                for key, item in value.items():
                    if key in _PATH_KEYS and isinstance(item, str) and ":" in item:
                        found.add(item)
                    visit(item)
            elif isinstance(value, list):
                for item in value:
                    visit(item)

        visit(self.plain())
        return frozenset(found)
