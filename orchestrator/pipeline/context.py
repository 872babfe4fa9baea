"""What every stage of a run shares: settings, store, rows, where results go, and cached member outputs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from orchestrator.cluster import inside_job
from orchestrator.config.base import fingerprint
from orchestrator.config.data import DataSettings, FolderData, ParquetData, PartName
from orchestrator.config.ensemble import Member, leaves
from orchestrator.config.run import RunConfig
from orchestrator.config.signature import Signature, are_named
from orchestrator.data.cache import trim as trim_data
from orchestrator.data.dataset import Dataset
from orchestrator.data.load import default_cache, load, load_alike
from orchestrator.ensemble.sight import beside, told
from orchestrator.errors import ConfigError, InputError
from orchestrator.progress import Progress
from orchestrator.runtime.execute import Executable
from orchestrator.runtime.execute import load as load_executable
from orchestrator.runtime.outputs import outputs_on
from orchestrator.store.budget import trim
from orchestrator.store.opening import is_remote, local_root, with_keys
from orchestrator.store.store import Store

LAPTOP_STORE = Path("runs/store")
JOB_STORE = Path("~/orchestrator/store")
STORE_VARIABLE = "ORCHESTRATOR_STORE"


@dataclass(frozen=True)
class Run:
    """One run of the pipeline in this process."""

    config: RunConfig
    store: Store
    folder: Path
    """`runs/<name>` beside the store: summary and report."""
    dataset: Dataset
    progress: Progress
    cluster: Callable[[], None]
    """Joins or starts Ray when called for the first time; a run whose results are all there never does."""

    @property
    def allowed(self) -> frozenset[str]:
        """Import paths that models may be built from."""
        return self.config.allowed()

    def outputs(self, member: Member, part: PartName) -> np.ndarray:
        """The member's outputs on a part, in its execution: from the store, or computed and kept there.

        Returns:
            float32 [N, K]: logits, or values in raw units.
        """
        return self.outputs_on(member, part, self.rows_for(member, part))

    def outputs_on(self, member: Member, part: PartName, dataset: Dataset) -> np.ndarray:
        """The same on a part of given data, whose rows are what the member takes."""
        return outputs_on(
            self.store,
            member.digest,
            member.execution,
            dataset,
            part,
            self.config.latency,
            allowed=self.allowed,
        )

    def alike(self, settings: DataSettings, *, labelled: bool = True) -> Dataset:
        """Another data set, read as the run's own is."""
        return load_alike(
            settings,
            self.config.data,
            self.dataset,
            seed=self.config.seed,
            cache=default_cache(),
            allowed=self.allowed,
            labelled=labelled,
        )

    def rows_for(self, member: Member, part: PartName) -> Dataset:
        """The run's data, or for a member that sees others one part of it, with what they say in its rows."""
        if not member.sees:
            return self.dataset
        rows = self.dataset.part(part)
        said = told([self.outputs(one, part) for one in member.sees], self.dataset.signature.task)
        shown = replace(rows, inputs=beside(rows.inputs, said))
        key = fingerprint([self.dataset.digest, [one.digest for one in member.sees]])
        return replace(self.dataset, parts={part: shown}, digest=key)

    def executable(self, member: Member) -> Executable:
        """The member ready to run, for the run's threads and batch."""
        latency = self.config.latency
        return load_executable(
            self.store,
            member.digest,
            member.execution,
            threads=latency.threads,
            batch=latency.batch,
            allowed=self.allowed,
        )

    def name_artifact(self, name: str, digest: str) -> None:
        """Point the ref `<run>/<name>` at an artifact or spec."""
        self.store.set_ref(f"{self.config.name}/{name}", digest)


def store_root(given: str | None) -> str:
    """Where the store is: `--store`, `ORCHESTRATOR_STORE`, else `runs/store` here (in a job: under home).

    Raises:
        ConfigError: a relative path inside a Ray job, whose working directory is temporary.
    """
    chosen = given or os.environ.get(STORE_VARIABLE) or None
    if chosen is None:
        return str(JOB_STORE.expanduser() if inside_job() else LAPTOP_STORE)
    if inside_job() and "://" not in chosen and not Path(chosen).expanduser().is_absolute():
        raise ConfigError(
            "inside a Ray job the store must be an absolute path or a URI",
            chosen,
            f"pass --store /shared/store or set {STORE_VARIABLE}",
        )
    return chosen if "://" in chosen else str(Path(chosen).expanduser())


def one_model(store: Store, name: str) -> str:
    """The digest of the model that a ref or digest names.

    Raises:
        NotFoundError: no such ref.
        InputError: it names an ensemble.
    """
    digest = store.resolve(name)
    if store.has_spec(digest):
        members = dict.fromkeys(member.name for member in leaves(store.spec(digest).tree))
        raise InputError("an ensemble is not one model", name, f"name a member: {', '.join(members)}")
    return digest


def run_folder(name: str, store: str | None) -> Path:
    """Where a run's summary and report are.

    Raises:
        ConfigError: that is the folder of the store.
    """
    chosen = store_root(store)
    folder = runs_folder(store) / name
    if not is_remote(chosen) and folder == local_root(chosen):
        raise ConfigError("a run cannot have the name of the store's folder", name, "choose another name")
    return folder


def runs_folder(store: str | None) -> Path:
    """Where the folders of all runs are: beside the store; on this machine where that is remote."""
    chosen = store_root(store)
    return local_root((JOB_STORE if inside_job() else LAPTOP_STORE) if is_remote(chosen) else chosen).parent


def with_data_root(config: RunConfig, root: str | None) -> RunConfig:
    """The run with its data folder replaced (`--data`), and that of `elsewhere` where it is the same one.

    Raises:
        ConfigError: the run's data source has no folder.
    """
    if root is None:
        return config
    if not isinstance(config.data, (ParquetData, FolderData)):
        raise ConfigError("--data does not apply to this run's data source", config.data.kind, "leave it out")
    update: dict[str, DataSettings] = {"data": config.data.model_copy(update={"root": root})}
    other = config.elsewhere
    if isinstance(other, (ParquetData, FolderData)) and other.root == config.data.root:
        update["elsewhere"] = other.model_copy(update={"root": root})
    return config.model_copy(update=update)


def open_run(config: RunConfig, *, store: str | None, progress: Progress, cluster: Callable[[], None]) -> Run:
    """Open the store and the rows of a run.

    Raises:
        DataError: the rows are missing or not what the run file says.
        StoreError: the store cannot be opened.
    """
    root = store_root(store)
    if config.require_signatures:
        root = with_keys(root, config.require_signatures)
    if inside_job():
        refuse_relative_data(config)
    opened = Store(root)
    trim(opened, config.caches)
    if config.caches.data_bytes is not None:
        trim_data(default_cache(), config.caches.data_bytes)
    folder = run_folder(config.name, store)
    progress("data", f"reading ({config.data.kind})")
    dataset = load(config.data, seed=config.seed, cache=default_cache(), allowed=config.allowed())
    sizes = ", ".join(f"{name} {len(part.ids)}" for name, part in dataset.parts.items())
    if dataset.stream is not None:
        files = len(dataset.stream.files)
        sizes = f"{dataset.stream.rows} train rows in {files} files are streamed; sample: {sizes}"
    progress("data", f"{sizes}; inputs {list(dataset.signature.input_shape)}, digest {dataset.digest[:12]}")
    return Run(config, opened, folder, dataset, progress, cluster)


def refuse_relative_data(config: RunConfig) -> None:
    """A job's working directory is a temporary copy on one node: data must be named absolutely.

    Raises:
        ConfigError: names the folder.
    """
    transfers = {
        f"models.{name}.training.transfer": entry.training.transfer for name, entry in config.models.items()
    }
    for place, data in {"data": config.data, "elsewhere": config.elsewhere, **transfers}.items():
        if isinstance(data, (ParquetData, FolderData)) and not Path(data.root).is_absolute():
            fix = "pass --data /path" if place == "data" else "name the folder from / on"
            raise ConfigError(f"inside a Ray job {place}.root must be an absolute path", data.root, fix)


def check_fits(model: str, takes: Signature, data: Signature) -> None:
    """Refuse data that a finished model was not made for; its scaling may differ, it is the model's own.

    Raises:
        ConfigError: rows, task, number of outputs, class names, or the encoding of text, sound or tables
            differ; names the model and what.
    """
    facts = {
        "task": "task",
        "input_shape": "shape of a row",
        "input_dtype": "type of a row",
        "outputs": "number of outputs",
    }
    for key, what in facts.items():
        own, given = getattr(takes, key), getattr(data, key)
        if own != given:
            raise ConfigError(
                f"the data's rows are not those of the model '{model}': its {what} is {_shown(own)}",
                _shown(given),
                "take the data that it was made for, or another model",
            )
    if takes.encoding != data.encoding:
        # The same numbers would stand for other words.
        raise ConfigError(
            f"the data's rows are encoded otherwise than those of the model '{model}'",
            "vocabularies, scales or rates differ",
            "take the run file and the seed that it was trained with",
        )
    if are_named(takes.classes) and are_named(data.classes):
        for label, (own, given) in enumerate(zip(takes.classes, data.classes, strict=True)):
            if own != given:
                raise ConfigError(
                    f"the data's classes are not those of the model '{model}': its label {label} is '{own}'",
                    given,
                    "give data.classes in the model's order",
                )


def _shown(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
