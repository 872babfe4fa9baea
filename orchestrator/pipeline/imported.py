"""`orchestrator import`: a model that exists already becomes an artifact, and is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from orchestrator.config.data import DataSettings, FolderData, ParquetData
from orchestrator.config.ensemble import Member
from orchestrator.config.load import validate, yaml_value
from orchestrator.config.measure import LatencySettings, Metric
from orchestrator.config.model import ModelSettings
from orchestrator.config.run import ModelEntry, RunConfig
from orchestrator.errors import ConfigError
from orchestrator.measure.artifacts import measure_artifacts
from orchestrator.measure.quality import quality
from orchestrator.models.build import build
from orchestrator.models.weights import load_into, read_weights
from orchestrator.pipeline.context import Run, open_run
from orchestrator.pipeline.run import EMBEDDED, read_config
from orchestrator.progress import Progress
from orchestrator.store.artifacts import Draft


def import_model(
    name: str, *, factory: str, kwargs: str, weights: Path, data: str, store: str | None
) -> dict[str, Any]:
    """Build the model, load its weights, measure it on the data and keep it under `name`.

    Args:
        name: ref for the model, like `digits/mine`.
        factory: built-in architecture or `package.module:callable`; naming it here allows it.
        kwargs: its arguments as YAML or JSON.
        weights: `.safetensors`, or `.pt` read with `weights_only`.
        data: a run file (its data section), a Parquet file, an image folder, or `digits`.
        store: path or URI of the store.

    Raises:
        ConfigError: factory, arguments or data are not valid.
        ModelError: factory or weights do not fit.
    """
    settings, tensors = _model(factory, kwargs), read_weights(weights)
    config = _config(name, settings, data)
    run = open_run(config, store=store, progress=Progress(), cluster=lambda: None)
    signature = run.dataset.signature
    module = build(settings, signature, allowed=run.allowed, seed=config.seed)
    load_into(module, tensors)
    draft = Draft(
        model=settings,
        signature=signature,
        data=run.dataset.digest,
        seed=config.seed,
        what={"imported": True},
    )
    digest = run.store.put_artifact(draft, module.state_dict())
    run.store.set_ref(name, digest)
    return {"ref": name, "digest": digest, **_figures(run, name, digest)}


class Named(NamedTuple):
    """What `--data` names."""

    settings: DataSettings
    metric: Metric = Metric()
    seed: int = 0
    """That the parts are cut with."""
    allowed: frozenset[str] = frozenset()
    """Import paths that may be called."""


def data_of(data: str) -> Named:
    """Data, metric and seed of a run file or of the embedded `digits`, so that parts are cut as there.

    Else the data of a Parquet file or an image folder.
    """
    place = Path(data)
    if data == EMBEDDED or place.suffix in (".yaml", ".yml"):
        run = read_config(data)
        return Named(run.data, run.metric, run.seed, run.allowed())
    if place.is_dir():
        return Named(FolderData(root=data))
    return Named(ParquetData(root=str(place.parent), train=place.name))


def _model(factory: str, kwargs: str) -> ModelSettings:
    try:
        arguments = yaml_value(kwargs) or {}
    except yaml.YAMLError as error:
        raise ConfigError("the arguments are not valid YAML", kwargs, "write them like {depth: 8}") from error
    entry = validate(ModelEntry, {"model": {"factory": factory, "kwargs": arguments}}, "import")
    assert entry.model is not None
    return entry.model


def _config(name: str, settings: ModelSettings, data: str) -> RunConfig:
    """A run of this model alone, so that everything else works as in a run."""
    found = data_of(data)
    values = {
        "name": name.replace("/", "."),
        "seed": found.seed,
        "data": found.settings.plain(),
        "metric": found.metric.plain(),
        "allow": sorted(found.allowed),
        "models": {"model": ModelEntry(model=settings).plain()},
    }
    return validate(RunConfig, values, "import")


def _figures(run: Run, name: str, digest: str) -> dict[str, Any]:
    """Test figures and eager latency."""
    outputs = run.outputs(Member(name=name, digest=digest), "test")
    targets = run.dataset.part("test").targets
    found = quality(run.config.metric, outputs, targets, allowed=run.allowed).plain()
    (record,) = measure_artifacts(
        run.store, digest, [(digest, "eager")], LatencySettings(), allowed=run.allowed
    )
    metric, low_high = found["metric"], record["ci"]
    run.progress(
        "import",
        f"{name} is {digest[:12]}: {metric['name']} {metric['value']:.4f} "
        f"({metric['ci'][0]:.4f} to {metric['ci'][1]:.4f}), {record['median_ms']:.3f} ms "
        f"({low_high[0]:.3f} to {low_high[1]:.3f}) a batch of {record['batch']}, "
        f"{run.store.artifact_bytes(digest):,} bytes",
    )
    return {**found, "latency_ms": record["median_ms"], "bytes": run.store.artifact_bytes(digest)}
