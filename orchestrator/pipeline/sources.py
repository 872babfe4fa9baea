"""Where the rows lie that an artifact was made with: its manifest holds their digest alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestrator.config.data import DataSettings, FolderData, ParquetData
from orchestrator.config.measure import Metric
from orchestrator.config.run import RunConfig
from orchestrator.data.dataset import Dataset
from orchestrator.data.load import default_cache, load
from orchestrator.errors import ConfigError, DataError
from orchestrator.pipeline.run import read_config
from orchestrator.store.artifacts import Manifest

_DATA: TypeAdapter[DataSettings] = TypeAdapter(DataSettings)


@dataclass(frozen=True)
class Source:
    """What a run file or a record says about an artifact's rows."""

    data: DataSettings
    metric: Metric
    """What recoveries reported and stopped early by."""
    allowed: frozenset[str]
    config: RunConfig | None = None
    """The run file, when one was given."""
    seed: int | None = None
    """That the rows were cut with, where that is known."""


def source_of(
    name: str,
    records: Iterable[dict[str, Any]],
    *,
    config: str | None,
    data: str | None,
    allow: Iterable[str],
    manifest: Manifest,
) -> Source:
    """The run file's word, else that of the first record beside the artifact that names its data.

    Import paths come from the run file and the caller: no record decides what code runs.

    Args:
        name: of the artifact, for sentences.
        records: beside the artifact.
        config: run file, or None.
        data: folder that replaces the data's.
        allow: import paths.
        manifest: of the artifact.

    Raises:
        ConfigError: nothing says where the data lies.
    """
    noted = next(
        (
            found
            for found in records
            if found.get("kind") == "quality" and found.get("data") == manifest.data and "source" in found
        ),
        None,
    )
    if config is not None:
        run = read_config(config, (), data)
        metric = run.metric if noted is None else Metric(**noted["settings"])
        return Source(run.data, metric, run.allowed() | frozenset(allow), run, run.seed)
    if noted is None:
        raise ConfigError(
            "no record says where the data lies that it was made with",
            name,
            "pass --config RUN.yaml, its run file",
        )
    try:
        settings = _DATA.validate_python(noted["source"])
    except ValidationError as error:
        raise ConfigError(
            "the record of where the data lies cannot be read", name, "pass --config RUN.yaml"
        ) from error
    metric = Metric(**noted["settings"])
    return Source(_moved(settings, data), metric, frozenset(allow), seed=noted.get("seed"))


def rows_of(name: str, source: Source, manifest: Manifest) -> Dataset:
    """The rows, which must be those that the artifact was made with.

    Raises:
        DataError: they are missing, unreadable, or others.
    """
    # Models and what is compressed by hand may have a seed of their own; rows are cut by that of the run.
    for seed in dict.fromkeys((manifest.seed if source.seed is None else source.seed, manifest.seed)):
        dataset = load(source.data, seed=seed, cache=default_cache(), allowed=source.allowed)
        if dataset.digest == manifest.data:
            return dataset
    raise DataError(
        f"the data is not what '{name}' was made with: its digest was {manifest.data[:12]}",
        dataset.digest[:12],
        "give the same files, or the run file with the same data section and seed",
    )


def _moved(settings: DataSettings, root: str | None) -> DataSettings:
    if root is None:
        return settings
    if not isinstance(settings, ParquetData | FolderData):
        raise ConfigError("--data does not apply to this data source", settings.kind)
    return settings.model_copy(update={"root": root})
