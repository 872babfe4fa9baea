"""Train one model of a run file again, in a store of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from orchestrator.cluster import connected
from orchestrator.config.run import RunConfig
from orchestrator.data.dataset import Dataset
from orchestrator.errors import ConfigError
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.sources import Source
from orchestrator.pipeline.training import job_of
from orchestrator.pipeline.watching import TrainingWatch
from orchestrator.progress import Progress
from orchestrator.store.artifacts import Manifest
from orchestrator.store.store import Store
from orchestrator.training.ray_train import train_models


def retrain(
    scratch: Store,
    digest: str,
    manifest: Manifest,
    records: Iterable[dict[str, Any]],
    source: Source,
    dataset: Dataset,
    progress: Progress,
) -> str:
    """Train the model of the run file that the artifact was, with the teacher that it had.

    Args:
        scratch: where its teacher is and the result goes.
        digest: of the artifact.
        manifest: its.
        records: beside it; those of its training name the model.
        source: with the run file.
        dataset: the rows.
        progress: told of epochs.

    Returns:
        Digest of the new artifact.

    Raises:
        ConfigError: there is no run file, or it has no such model, or describes it otherwise.
    """
    config = source.config
    if config is None:
        raise ConfigError("training a model again needs its run file", digest[:12], "pass --config RUN.yaml")
    name = _named(config, digest, manifest, records)
    entry = config.models[name]
    run = Run(config, scratch, scratch.root.parent, dataset, progress, cluster=lambda: None)
    teachers = {entry.teacher: manifest.parents[0]} if entry.teacher and manifest.parents else {}
    job = job_of(run, name, entry, teachers)
    with connected():
        done = train_models(
            [job],
            storage=run.folder / "training",
            on_event=TrainingWatch(run, {name: entry.training.epochs}),
        )
    return done[name]


def _named(config: RunConfig, digest: str, manifest: Manifest, records: Iterable[dict[str, Any]]) -> str:
    """Name of the model in the run file. Equal settings make one artifact, so that other names may have been
    there before.

    Raises:
        ConfigError: it has none.
    """
    trained = [str(found["name"]) for found in records if found.get("kind") == "training"]
    known = [name for name in trained if name in config.models]
    for name in (*known, *config.models):
        entry = config.models[name]
        same = entry.model == manifest.model and entry.training.plain() == manifest.what.get("training")
        if same and config.seed_of(entry) == manifest.seed and entry.number == manifest.what.get("number"):
            return name
    if known:
        raise ConfigError(
            f"the run file describes model '{known[0]}' otherwise than it was trained",
            digest[:12],
            "give the run file as it was, seed included",
        )
    told = ", ".join(trained) or None
    raise ConfigError("the run file has no model of this name", told, "give the run file that trained it")
