"""The whole run file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from orchestrator.config.base import Settings, absent
from orchestrator.config.caches import CacheBudgets
from orchestrator.config.data import DataSettings
from orchestrator.config.ensemble import (
    Boosting,
    Chain,
    Combined,
    Ensemble,
    Member,
    Stacking,
    leaves,
    walk_nodes,
)
from orchestrator.config.ensemble_checks import complaint_of
from orchestrator.config.free import first_complaint, probes
from orchestrator.config.groups import name_of, nth_seed, stage_names, with_groups
from orchestrator.config.imports import ImportPath
from orchestrator.config.losses import loss_complaint, losses_complaint
from orchestrator.config.measure import (
    TASK_METRICS,
    LatencySettings,
    Metric,
)
from orchestrator.config.model import ModelSettings, SideBySide
from orchestrator.config.search import SearchSettings
from orchestrator.config.search_checks import promise_complaint, search_complaint
from orchestrator.config.serving import ServingSettings
from orchestrator.config.streaming import run_complaint
from orchestrator.config.tracking import MlflowTracking
from orchestrator.config.training import JOINT_LOSSES, DistillationLoss, Resources, Training
from orchestrator.config.tuning import TrainingSearch, tuned
from orchestrator.config.variant import VariantEntry, plan_complaint

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
"""Becomes part of refs, file names and URLs."""
PublicKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""Of Ed25519, as `orchestrator keys signing` prints it."""
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
    seed: int | None = Field(None, ge=0, lt=2**31, exclude_if=absent)
    """Of weights, order, augmentation and drawn rows; the run's when not given."""
    copies: int = Field(1, ge=1, le=100, exclude_if=lambda copies: copies == 1)
    """So many models that differ by their seed, `<name>-1`, `<name>-2`, ..."""
    together: tuple[ModelSettings, ...] | None = Field(None, min_length=2, max_length=100, exclude_if=absent)
    """Instead of `model`: trained in one run, by a loss that ties them (mutual, negative_correlation)."""
    number: int | None = Field(None, ge=1, exclude_if=absent)
    """Filled in when the file is read: which of the models of one training this is."""

    @property
    def yields(self) -> int:
        """How many models its training yields."""
        return len(self.together or ()) or self.training.snapshots or 1

    def models(self, name: str, seed: int) -> dict[str, ModelEntry]:
        """The entry, which has this name, as one entry a model. Those of one training have a `number`.

        Args:
            name: the entry's.
            seed: of the run.
        """
        seed = seed if self.seed is None else self.seed
        if self.number is not None or self.copies == self.yields == 1:
            return {name: self}
        if self.copies > 1 and not isinstance(self.training.loss, JOINT_LOSSES):
            return {
                name_of(name, number): self.model_copy(update={"copies": 1, "seed": nth_seed(seed, number)})
                for number in range(1, self.copies + 1)
            }
        together = self.together or (self.model,) * self.copies if self.training.snapshots is None else None
        models = together or (self.model,) * self.yields
        return {
            name_of(name, number): self.model_copy(
                update={"copies": 1, "model": model, "together": together, "number": number}
            )
            for number, model in enumerate(models, 1)
        }

    @model_validator(mode="after")
    def _one_source(self) -> ModelEntry:
        # The models of `together` have their entry's `model` from the file; it is known by its number.
        sources = (self.model, self.ref, self.together if self.number is None else None)
        if sum(source is not None for source in sources) != 1:
            raise ValueError(
                "give either 'model' (trained here) or 'ref' (already in the store), or models 'together'"
            )
        self._group()
        if isinstance(self.training.loss, DistillationLoss) != (self.teacher is not None):
            raise ValueError("a distillation loss and 'teacher' go together")
        if any(isinstance(model, SideBySide) for model in (self.model, *(self.together or ()))):
            raise ValueError("side_by_side mixes trained networks: train its members, then use step 'merge'")
        if isinstance(self.training.loss, DistillationLoss) and self.training.loss.features:
            raise ValueError("'features' of a distillation loss are for the steps recover, distill and qat")
        if self.training.transfer is not None and self.teacher is None:
            raise ValueError("a transfer set needs a distillation loss and 'teacher'")
        return self

    def _group(self) -> None:
        """What entries that stand for several models may not be."""
        joint = isinstance(self.training.loss, JOINT_LOSSES)
        if joint and self.copies == 1 and self.together is None:
            raise ValueError("this loss is for models that are trained together: give 'together' or 'copies'")
        if self.together is not None and not joint:
            raise ValueError("'together' needs a loss that ties the models: mutual or negative_correlation")
        several = (self.copies > 1, self.together is not None, self.training.snapshots is not None)
        if sum(several) > 1 or (joint and self.training.snapshots is not None):
            raise ValueError("only one of 'copies', 'together' and 'training.snapshots' makes several models")
        own = {"copies": 1, "seed": None, "training": Training(), "resources": Resources()}
        idle = [key for key, plain in own.items() if getattr(self, key) != plain]
        if self.ref is not None and idle:
            raise ValueError(f"a model from the store is not trained here, so it has no '{idle[0]}'")
        if self.number is not None and self.yields == 1:
            raise ValueError(
                "'number' tells apart the models of one training, here there is one: leave it out"
            )
        if self.number is not None and self.number > self.yields:
            raise ValueError(f"'number' is at most {self.yields} here")


class RunConfig(Settings):
    """Train, compress, ensemble, evaluate and serve: everything one run does."""

    name: Name
    seed: int = Field(0, ge=0, lt=2**31)
    allow: tuple[ImportPath, ...] = ()
    """Import paths that imported models may be built from, besides those that this file names itself."""
    data: DataSettings
    elsewhere: DataSettings | None = Field(None, exclude_if=absent)
    """Rows of another source, whose test part nobody should be sure of; classification."""
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
    caches: CacheBudgets = Field(CacheBudgets(), exclude_if=lambda budgets: budgets == CacheBudgets())
    """Bytes that caches may hold."""
    require_signatures: tuple[PublicKey, ...] = Field((), exclude_if=lambda keys: not keys)
    """Public keys: artifacts and compiled forms of the store are loaded only if one of them signed them."""
    tracking: MlflowTracking | None = None
    """A server that is told of the run, besides the files that TensorBoard reads."""

    @model_validator(mode="before")
    @classmethod
    def _default_metric(cls, value: Any) -> Any:
        data = value.get("data") if isinstance(value, dict) else None
        task = data.get("task") if isinstance(data, dict) else None
        if isinstance(task, str) and task in TASK_METRICS and "metric" not in value:
            return {**value, "metric": {"name": TASK_METRICS[task][0]}}
        return value

    @field_validator("models", mode="after")
    @classmethod
    def _one_entry_a_model(
        cls, models: dict[Name, ModelEntry], info: ValidationInfo
    ) -> dict[Name, ModelEntry]:
        found: dict[Name, ModelEntry] = {}
        for name, entry in models.items():
            for own, plain in entry.models(name, info.data.get("seed", 0)).items():
                if own in found or (own != name and own in models):
                    raise ValueError(f"two models would be named '{own}'")
                found[own] = plain
        return found

    @field_validator("ensembles", mode="before")
    @classmethod
    def _groups_as_members(cls, ensembles: Any, info: ValidationInfo) -> Any:
        models = info.data.get("models", {})
        if not isinstance(ensembles, dict):
            return ensembles
        taken = {*models, *info.data.get("variants", {}), *ensembles, *FRONT_NAMES}
        return with_groups(ensembles, models, taken)

    @model_validator(mode="after")
    def _names(self) -> RunConfig:
        for name, entry in self.models.items():
            if name in FRONT_NAMES:
                raise ValueError(f"model name '{name}' is reserved for the search's front")
            if entry.teacher is not None and (entry.teacher not in self.models or entry.teacher == name):
                raise ValueError(f"models.{name}.teacher: no other model is named '{entry.teacher}'")
        self._no_teacher_cycle()
        self._variant_names()
        complaint = search_complaint(self.search, self.models, self.data.task)
        if complaint is not None:
            raise ValueError(f"search.{complaint}")
        self._ensemble_names()
        self._no_student_circle()
        self._tuned_models()
        self._served_members()
        trainings = {name: entry.training for name, entry in self.models.items()}
        complaint = losses_complaint(
            self.data.task, trainings, self.variants, self.search, self.ensembles
        ) or run_complaint(self.data, trainings, self.ensembles)
        if complaint is not None:
            raise ValueError(complaint)
        if self.elsewhere is not None and self.data.task != "classification":
            raise ValueError(f"elsewhere: not for task {self.data.task}; leave it out")
        of_task = TASK_METRICS[self.data.task]
        if ":" not in self.metric.name and self.metric.name not in of_task:
            raise ValueError(
                f"metric {self.metric.name} does not fit task {self.data.task}: use {', '.join(of_task)}"
            )
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
            if (complaint := promise_complaint(entry.promise, self.data.task)) is not None:
                raise ValueError(f"variants.{name}.{complaint}")
            known.append(name)
        if (complaint := plan_complaint(self.variants)) is not None:
            raise ValueError(f"variants.{complaint}")

    def _ensemble_names(self) -> None:
        known = [*self.models, *self.variants, *(FRONT_NAMES if self.search else ())]
        for ensemble, tree in self.ensembles.items():
            if ensemble in known:
                raise ValueError(f"ensembles.{ensemble}: the name is already taken")
            above = {own: self.ensembles[own] for own in known if own in self.ensembles}
            named = [node.name for node in walk_nodes(tree) if isinstance(node, Member)]
            if lost := [name for name in named if name not in known]:
                here = ", ".join(known)
                raise ValueError(f"ensembles.{ensemble}: no member is named '{lost[0]}'; known: {here}")
            for node in walk_nodes(tree):
                complaint = complaint_of(node, self.data.task, above, root=node is tree)
                if isinstance(node, Combined) and node.reject is not None and self.elsewhere is None:
                    lacking = "reject.recall needs rows that are out of scope: name 'elsewhere'"
                    complaint = complaint or (lacking if node.reject.recall is not None else None)
                if isinstance(node, Stacking | Chain) and node.folds is not None:
                    complaint = complaint or self._folds_complaint(ensemble, node)
                if isinstance(node, Boosting):
                    complaint = complaint or self._boosting_complaint(ensemble, node)
                if complaint is not None:
                    raise ValueError(f"ensembles.{ensemble}: {complaint}")
            known.append(ensemble)

    def _served_members(self) -> None:
        known = {*self.models, *self.variants, *(FRONT_NAMES if self.search else ())}
        for ensemble, tree in self.ensembles.items():
            for node in walk_nodes(tree):
                if isinstance(node, Boosting):
                    known.update(stage_names(ensemble, node.base, node.rounds))
                if isinstance(node, Chain):
                    known.update(name_of(ensemble, 1 + number) for number in range(len(node.later)))
        unknown = [name for name in (self.serving.members if self.serving else ()) if name not in known]
        if unknown:
            here = ", ".join(sorted(known))
            raise ValueError(f"serving.members: no member is named '{unknown[0]}'; known: {here}")

    def taught(self) -> tuple[str, ...]:
        """Variants that cannot be made before an ensemble of this file is fitted, in its order."""
        found: list[str] = []
        for name, entry in self.variants.items():
            if not {*self.ensembles, *found}.isdisjoint(entry.needs()):
                found.append(name)
        return tuple(found)

    def _no_student_circle(self) -> None:
        """No ensemble may have a member that learns from it. Ensembles and variants name only what stands
        above them in their sections, so that a circle has a variant and an ensemble in it."""
        needs = {name: entry.needs() for name, entry in self.variants.items()}
        needs |= {name: tuple(leaf.name for leaf in leaves(tree)) for name, tree in self.ensembles.items()}

        def reached(name: str, seen: frozenset[str]) -> bool:
            return name in seen or any(reached(below, seen | {name}) for below in needs.get(name, ()))

        for name in self.variants:
            if reached(name, frozenset()):
                raise ValueError(f"variants.{name}: it learns from an ensemble that it is itself a part of")

    def _boosting_complaint(self, ensemble: str, node: Boosting) -> str | None:
        """Stages are trained as models of the run, under names that start with the ensemble's."""
        base = self.models.get(node.base)
        if base is None:
            return f"base: no model is named '{node.base}'; models: {', '.join(self.models)}"
        if base.ref is not None or base.teacher is not None:
            return f"base: '{node.base}' must be trained here and from labels, without 'ref' and 'teacher'"
        if base.number is not None:
            return f"base: '{node.base}' is one of several models of a training"
        if node.members or node.factors or node.train_losses or node.survivors:
            return "members, factors, train_losses and survivors are filled in by the run: leave them out"
        if self.ensembles[ensemble] is not node:
            return "boosting stands in an ensemble of its own, which this one may name as a member"
        stages = set(stage_names(ensemble, node.base, node.rounds)[1:])
        taken = {*self.models, *self.variants, *self.ensembles} & stages
        return f"the name '{min(taken)}' is that of a stage; choose another" if taken else None

    def _folds_complaint(self, ensemble: str, node: Stacking | Chain) -> str | None:
        """Members are trained again without some rows, so they must be models that are trained here."""
        what = "a chain" if isinstance(node, Chain) else "a stack with folds"
        if self.ensembles[ensemble] is not node:
            return f"{what} stands in an ensemble of its own, which this one may name as a member"
        for member in node.members:
            name = member.name if isinstance(member, Member) else member.kind
            entry = self.models.get(name) if isinstance(member, Member) else None
            if entry is None or entry.ref is not None or entry.teacher is not None:
                return f"folds: member '{name}' must be a model that is trained here, without 'teacher'"
            if entry.number is not None:
                return f"folds: member '{name}' is one of several models of a training"
        names = {name_of(ensemble, 1 + number) for number in range(len(getattr(node, "later", ())))}
        taken = {*self.models, *self.variants, *self.ensembles} & names
        return f"the name '{min(taken)}' is that of a later model; choose another" if taken else None

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
        if base.number is not None:
            raise ValueError(
                f"training_search.model: '{settings.model}' is one of several models of a training"
            )
        if settings.result in (*self.models, *self.variants, *self.ensembles):
            raise ValueError(f"the name '{settings.result}' is that of the training search's result")
        for config in probes(settings.space):
            try:
                entry = ModelEntry.model_validate(tuned(base.plain(), settings, config))
            except ValidationError as error:
                raise ValueError(f"training_search.space: {first_complaint(error, config)}") from error
            if entry.yields > 1:
                raise ValueError(
                    "training_search.space: snapshots make several models of one: leave them out"
                )
            if entry.training.transfer != base.training.transfer:
                raise ValueError("training_search.space: the rows of a transfer set cannot be free")
            if (complaint := loss_complaint(entry.training, self.data.task)) is not None:
                raise ValueError(f"training_search.space: training.loss: {complaint}")

    def seed_of(self, entry: ModelEntry) -> int:
        """The seed that a model of this run is trained with."""
        return self.seed if entry.seed is None else entry.seed

    def allowed(self) -> frozenset[str]:
        """Every import path that this file names: the only code of the user's that may run."""
        found = set(self.allow)

        def visit(value: Any, key: str = "") -> None:
            if isinstance(value, dict):
                for own, item in value.items():
                    visit(item, key if own == "choice" else own)  # options of a free value stand for the key
            elif isinstance(value, list):
                for item in value:
                    visit(item, key)
            elif isinstance(value, str) and key in _PATH_KEYS and ":" in value:
                found.add(value)

        visit(self.plain())
        return frozenset(found)
