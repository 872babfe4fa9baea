"""A trial of the training search: one model trained with other settings, run eager, and scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from orchestrator.config.base import fingerprint
from orchestrator.config.run import ModelEntry
from orchestrator.config.search import Promise
from orchestrator.config.space import Config
from orchestrator.config.tuning import TrainingSearch, tuned
from orchestrator.data.dataset import Dataset
from orchestrator.data.load import open_cached
from orchestrator.errors import ConfigError, DataError, ExecutionError, ModelError, TrainingError
from orchestrator.measure.cost import count
from orchestrator.models.build import build
from orchestrator.search.outcome import Outcome
from orchestrator.search.trial import (
    Epochs,
    Job,
    epochs_of,
    make,
    scored,
    settings_of,
    trial_key,
)
from orchestrator.store.store import Store
from orchestrator.training.fitting import fit
from orchestrator.training.job import TrainJob

_VERSION = 2
"""Raise when this stage's result would differ for the same input."""


class TuneJob(Job):
    """Of trials that train one model with other settings; `parent` is the model as it is."""

    failures = (TrainingError, ExecutionError, ModelError, ConfigError, DataError)

    kind: Literal["training"] = "training"
    search: TrainingSearch
    entry: ModelEntry
    """The model as the run file describes it."""
    teacher: str | None = None
    """Digest of its teacher."""
    transfer_folder: str | None = None
    """Cache folder of its transfer set."""


def entry_of(job: TuneJob, config: Config) -> ModelEntry:
    """The model that a config stands for."""
    return ModelEntry.model_validate(tuned(job.entry.plain(), job.search, config))


def training_of(job: TuneJob, config: Config) -> TrainJob:
    """The training of a config; a run file with that entry finds its result in the store."""
    entry = entry_of(job, config)
    return TrainJob(
        name=job.search.model,
        entry=entry,
        data_folder=job.data_folder,
        store=job.store,
        seed=job.seed,
        metric=job.metric,
        allowed=job.allowed,
        teacher_digest=None if entry.teacher is None else job.teacher,
        transfer_folder=job.transfer_folder,
    )


@trial_key.register
def _(job: TuneJob, config: Config) -> str:
    what = {
        "stage": "training trial",
        "version": _VERSION,
        "parent": job.parent,
        "training": training_of(job, config).key(),
        "threads": job.search.latency.threads,
        "what": job.what,
    }
    return fingerprint(what)


@epochs_of.register
def _(job: TuneJob, config: Config) -> int:
    return entry_of(job, config).training.epochs


@settings_of.register
def _(job: TuneJob, config: Config) -> tuple[dict[str, Any], ...]:
    """The whole model and training, as the report shows steps."""
    entry = entry_of(job, config).plain()
    return ({"kind": "model", **entry["model"]}, {"kind": "training", **entry["training"]})


@make.register
def _(job: TuneJob, store: Store, config: Config, epochs: Epochs) -> Outcome:
    wanted = training_of(job, config)
    dataset = open_cached(Path(job.data_folder))
    torch.set_num_threads(job.search.cpus)
    if job.search.early_stop is not None:
        epochs.cost = _cost(wanted, dataset)

    digest = store.stage(wanted.key(), lambda: fit(wanted, store, epochs))
    return scored(job, store, dataset, digest, config, Promise())


def _cost(wanted: TrainJob, dataset: Dataset) -> float:
    """Operations of a row."""
    assert wanted.entry.model is not None
    module = build(wanted.entry.model, dataset.signature, allowed=wanted.allowed, seed=0)
    return float(count(module, dataset.signature).macs)
