"""A training job as plain data, its key, and the claim that keeps one name for one configuration."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.config.base import fingerprint
from orchestrator.config.claim import claim as keep_name
from orchestrator.config.claim import holds
from orchestrator.config.groups import name_of, nth_seed
from orchestrator.config.imports import code_digest, resolve
from orchestrator.config.measure import Metric
from orchestrator.config.model import ImportedModel
from orchestrator.config.run import ModelEntry
from orchestrator.config.training import CustomLoss
from orchestrator.data.load import open_cached
from orchestrator.errors import TrainingError
from orchestrator.store.store import Store
from orchestrator.training.checkpoint import Checkpoint

VERSION = 2
"""Of the training code: raise it when equal settings give other weights, so that old results are left."""
DISTILLED_VERSION = 3
"""The same of models with a teacher."""


@dataclass(frozen=True)
class TrainJob:
    """One model to train. Plain data: it crosses process boundaries."""

    name: str
    entry: ModelEntry
    data_folder: str
    """Cache folder of the data set, readable on every node."""
    store: str
    """Root of the store, reachable from every node."""
    seed: int
    metric: Metric
    allowed: tuple[str, ...] = ()
    teacher_digest: str | None = None
    """An artifact to distil from; not given when the teacher is another job of the same call."""
    transfer_folder: str | None = None
    """Cache folder of the transfer set that `entry.training.transfer` describes."""
    before: tuple[tuple[str, float], ...] = ()
    """Of a boosting's stage: digest and factor of each one before it, whose sum its outputs are added to."""
    sees: tuple[str, ...] = ()
    """Of a chain's later model: artifacts whose outputs stand in its rows, which decide them."""
    fold: tuple[int, int] | None = None
    """(number, of so many): train rows of this fold are left out (`data.split.fold_of`)."""

    def plain(self) -> dict[str, Any]:
        """As plain values; `from_plain` reads them."""
        return {**vars(self), "entry": self.entry.plain(), "metric": self.metric.plain()}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> TrainJob:
        """The job that `plain` was made of."""
        return cls(
            **{
                **values,
                "entry": ModelEntry.model_validate(values["entry"]),
                "metric": Metric.model_validate(values["metric"]),
                "allowed": tuple(values["allowed"]),
                "fold": None if values["fold"] is None else tuple(values["fold"]),
                "sees": tuple(values["sees"]),
                "before": tuple((digest, factor) for digest, factor in values["before"]),
            }
        )

    def settings(self) -> dict[str, Any]:
        """All that decides the weights, but which artifact the teacher is."""
        entry, resources = self.entry, self.entry.resources
        if entry.model is None:
            raise TrainingError("an imported model is not trained", self.name, "leave it out of the jobs")
        teacher = self.teacher_digest or entry.teacher
        transfer = None if self.transfer_folder is None else open_cached(Path(self.transfer_folder)).digest
        found: dict[str, Any] = {
            "stage": "train",
            "version": VERSION if teacher is None else DISTILLED_VERSION,
            "model": entry.model.plain(),
            "training": entry.training.plain(),
            "metric": self.metric.plain(),
            "seed": self.seed,
            "data": open_cached(Path(self.data_folder)).digest,
            "transfer": transfer,
            "teacher": teacher,
            "threads": resources.cpus,
            "workers": list(resources.span),
            "strategy": resources.strategy,
            "gpu": resources.gpus > 0,
            **self.place(),
        }
        if self.before:
            found["before"] = [list(pair) for pair in self.before]
            if self.entry.training.sample is not None:
                found["sample_seed"] = self.sample_seed
        if self.fold is not None:
            found["fold"] = list(self.fold)
        if self.imports:
            self.check_imports()
            # It may change, and its name stay.
            found["code"] = {path: code_digest(path) for path in self.imports}
        return found

    @property
    def imports(self) -> list[str]:
        """Import paths of the user's own code that decides the weights."""
        entry, loss = self.entry, self.entry.training.loss
        models = (entry.model, *(entry.together or ()))
        paths = [model.factory for model in models if isinstance(model, ImportedModel)]
        paths += [loss.loss] if isinstance(loss, CustomLoss) else []
        return [*paths, *([self.metric.name] if ":" in self.metric.name else [])]

    def check_imports(self) -> None:
        """Import what the run file names for this training.

        Raises:
            ModelError: one cannot be imported, or is not allowed.
        """
        for path in self.imports:
            resolve(path, self.allowed)

    @property
    def sample_seed(self) -> int:
        """Of the rows that `entry.training.sample` draws: each stage of a boosting draws others."""
        return nth_seed(self.seed, len(self.before) + 1)

    def place(self) -> dict[str, Any]:
        """Which of the models of its training this is, and what they are; empty for one that stands alone."""
        entry = self.entry
        found: dict[str, Any] = {} if entry.number is None else {"number": entry.number}
        if entry.together is not None:
            found["together"] = [model.plain() for model in entry.together]
        return found

    @property
    def group(self) -> str:
        """Name of the training: that of all its models, or the model's own."""
        return self.name.removesuffix(name_of("", self.entry.number)) if self.entry.number else self.name

    def siblings(self) -> tuple[TrainJob, ...]:
        """A job for each model that comes out of the same training, in order; mostly itself alone."""
        entry = self.entry
        if entry.number is None:
            return (self,)
        models = entry.together or (entry.model,) * entry.yields
        return tuple(
            replace(
                self,
                name=name_of(self.group, number),
                entry=entry.model_copy(update={"model": model, "number": number}),
            )
            for number, model in enumerate(models, 1)
        )

    def key(self) -> str:
        """Of the stage in the store: settings and teacher's digest."""
        return fingerprint(self.settings())


def run_name(job: TrainJob) -> str:
    """Name of the Ray Train run: stable, so that the same job resumes; one for all models of a training."""
    return f"{job.group}-{job.siblings()[0].key()[:12]}"


def checkpoint_of(job: TrainJob, store: Store) -> Checkpoint | None:
    """Where the job's epochs are in a store on no file system; None elsewhere, where Ray Train keeps them.

    Beside such a store there is no folder that all nodes reach, or that outlives the head.
    """
    return None if store.blobs.local else Checkpoint(store, job.siblings()[0].key())


def claim(job: TrainJob, storage: Path, fresh: bool) -> None:
    """Keep the job's name for its settings: `<storage>/<name>.json`.

    Args:
        job: to be trained.
        storage: folder of the training runs.
        fresh: forget what was trained under this name with other settings, checkpoints included. Finished
            artifacts stay in the store, and equal settings find them, and unfinished epochs, again.

    Raises:
        ConfigError: the name was used with other settings.
    """
    file, settings = storage / f"{job.name}.json", job.settings()
    if fresh and not holds(file, settings):
        for folder in storage.glob(f"{job.group}-{'[0-9a-f]' * 12}"):
            shutil.rmtree(folder)
    keep_name(
        file,
        settings,
        f"model '{job.name}' was trained in this run with other settings",
        "take another run name, or pass --fresh to train it anew",
        fresh=fresh,
    )


def drop_damaged(folder: Path) -> bool:
    """Remove a run whose list of checkpoints cannot be read; Ray overwrites that file in place.

    Returns:
        Whether there was such a run. It starts over, and ends with the same weights.
    """
    record = folder / "checkpoint_manager_snapshot.json"
    if not record.exists():
        return False
    try:
        json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        shutil.rmtree(folder)
        return True
    return False
