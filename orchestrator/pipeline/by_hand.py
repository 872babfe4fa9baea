"""`orchestrator compress` and `sensitivity`: one model of the store, compressed or looked at by layers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import yaml

from orchestrator.compression import Audit, Sensitivity, Variant, compress, sensitivity
from orchestrator.config.load import yaml_value
from orchestrator.config.measure import Execution, LatencySettings, Metric
from orchestrator.config.search import Promise
from orchestrator.data.dataset import Dataset
from orchestrator.data.load import default_cache, load
from orchestrator.errors import ConfigError
from orchestrator.measure.artifacts import Subject, keep_latency
from orchestrator.measure.promise import SAID, Verdict
from orchestrator.pipeline.context import check_fits, one_model, store_root
from orchestrator.pipeline.imported import Named, data_of
from orchestrator.pipeline.judging import Asked, answer, look
from orchestrator.pipeline.recording import note_quality
from orchestrator.progress import Progress
from orchestrator.runtime.outputs import outputs_on
from orchestrator.store.artifacts import Manifest
from orchestrator.store.names import check_ref_name
from orchestrator.store.store import Store


def compress_ref(
    source: str,
    *,
    plan: str,
    data: str,
    name: str,
    store: str | None = None,
    seed: int = 0,
    threads: int = 1,
    batches: tuple[int, ...] = (1, 32),
    execution: Execution | None = None,
    allow: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Apply a plan, say what it really did, and point the ref `name` at the result.

    Args:
        source: ref or digest of the model to compress.
        plan: a YAML or JSON file with a list of steps, or such a list itself.
        data: what steps train on and calibrate with (`data_of`), encoded as the model's own rows were.
        name: ref for the variant, like `digits/small`.
        store: path or URI of the store.
        seed: of everything random but the cut of the data into parts.
        threads: torch threads of the steps.
        batches: batch sizes to measure latencies at, one thread.
        execution: that latencies and the metric are measured in; eager or lowered when not given.
        allow: import paths that factories and losses may come from.

    Returns:
        `ref`, `digest`, `source`, `facts` and `baseline` (see `Audit`), `latency_ms` by batch, `gate`,
        `promise` (see `_promise`), and `text`, all of it for people.

    Raises:
        InputError: the plan is not valid, the source an ensemble, or the data's rows not the model's.
        CompressionError: a step does not fit the model, or would do nothing.
        ExecutionError: the variant, or this machine, does not run it so.
        NotFoundError: no such model.
    """
    check_ref_name(name)
    progress, opened = Progress(), Store(store_root(store), create=False)
    parent, rows = one_model(opened, source), data_of(data)
    metric, paths = rows.metric, tuple(sorted({*allow, *rows.allowed}))
    dataset = _rows(rows, source, opened.manifest(parent), paths, progress)
    variant = compress(
        parent,
        read_plan(plan),
        dataset,
        store=opened,
        metric=metric,
        seed=seed,
        threads=threads,
        allowed=paths,
        on_epoch=lambda report: progress("compress", report.text(metric.label)),
    )
    digest = variant.save(opened, name)
    progress("compress", f"{name} is {digest[:12]}; measuring")
    audit = _measured(variant, opened, parent, dataset, rows, batches, execution)
    own = (digest, execution or variant.execution)
    verdict = _promise(opened, parent, own, dataset, metric, LatencySettings(), paths)
    return {"ref": name, "digest": digest, "source": source, **_plain(audit, verdict)}


def sensitivity_ref(
    source: str,
    *,
    data: str,
    amounts: tuple[float, ...],
    out: Path | None = None,
    store: str | None = None,
    threads: int = 1,
    allow: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Prune each layer of a model alone, by each amount, and look at the metric on validation rows.

    Args:
        source: ref or digest of the model.
        data: as for `compress_ref`.
        amounts: shares of a layer's channels.
        out: HTML file for the plot.
        store: path or URI of the store.
        threads: torch threads.
        allow: import paths that factories may come from.

    Returns:
        `source`, `digest`, those of `Sensitivity.plain`, `written` (the plot, or None), `text` for people.

    Raises:
        InputError: the source is an ensemble, or the data's rows are not the model's.
        CompressionError: the model's channels cannot be ranked.
        NotFoundError: no such model.
    """
    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError("the folder of the plot does not exist", out.absolute().parent, "make it first")
    if out is not None and out.is_dir():
        raise ConfigError("the plot is a file, and this is a folder", out, "name a file in it")
    opened = Store(store_root(store), create=False)
    digest, rows = one_model(opened, source), data_of(data)
    paths = tuple(sorted({*allow, *rows.allowed}))
    dataset = _rows(rows, source, opened.manifest(digest), paths, Progress())
    found = sensitivity(
        digest, dataset, amounts, store=opened, metric=rows.metric, threads=threads, allowed=paths
    )
    written = None if out is None else str(found.write(out))
    document = {"source": source, "digest": digest, **found.plain(), "written": written}
    return document | {"text": _told(found, written)}


def _told(found: Sensitivity, written: str | None) -> str:
    """A line a layer."""
    lines = [f"{found.metric.label} {found.before:.4f} on validation rows; with one layer pruned alone:"]
    layers = dict.fromkeys(reading.layer for reading in found.readings)
    width = max(map(len, layers), default=0)
    for layer in layers:
        own = [reading for reading in found.readings if reading.layer == layer]
        said = ", ".join(f"{reading.metric:.4f} without {reading.amount:.0%}" for reading in own)
        lines.append(f"{layer:>{width}}  {said}")
    return "\n".join([*lines, f"plot: {written}"] if written else lines)


def _promise(
    store: Store,
    parent: str,
    own: Subject,
    dataset: Dataset,
    metric: Metric,
    latency: LatencySettings,
    allowed: tuple[str, ...],
) -> Verdict | None:
    """Whether it drops by at most 0.01 on contract rows; None without them.

    All that is ever made of this model by hand shares the confidence.
    """
    part = dataset.parts.get("contract")
    if part is None or not len(part) or own[0] == parent:
        return None
    outputs = [
        outputs_on(store, digest, execution, dataset, "contract", latency, allowed=allowed)
        for digest, execution in (own, (parent, "eager"))
    ]
    ask = answer(metric, outputs[0], outputs[1], part.targets, frozenset(allowed))
    study = {"series": parent, "data": dataset.digest, "metric": metric.plain()}
    return look(store, study, Asked(own, Promise(), ask))


def _measured(
    variant: Variant,
    store: Store,
    parent: str,
    dataset: Dataset,
    rows: Named,
    batches: tuple[int, ...],
    execution: Execution | None,
) -> Audit:
    """The audit of a stored variant; its figures are kept beside it."""
    audit = variant.audit(batches, latency := LatencySettings(), execution=execution)
    digest = variant.digest
    if digest is not None and digest != parent:
        note = partial(note_quality, store, (digest, execution or variant.execution), dataset)
        note(
            source=rows.settings, seed=rows.seed, metric=rows.metric, latency=latency, allowed=variant.allowed
        )
        for found in audit.latencies.values():
            keep_latency(store, digest, parent, found, latency)
    return audit


def _rows(named: Named, source: str, made: Manifest, allowed: tuple[str, ...], progress: Progress) -> Dataset:
    """The data set; text and tables as the rows of the model `source` were encoded, should theirs be others.

    Raises:
        ConfigError: its rows are not the model's.
    """
    takes = made.signature
    found = load(named.settings, seed=named.seed, cache=default_cache(), allowed=allowed)
    if takes.encoding not in (None, found.signature.encoding):
        found = load(
            named.settings, seed=named.seed, cache=default_cache(), allowed=allowed, encoding=takes.encoding
        )
    check_fits(source, takes, found.signature)
    if made.data and found.digest != made.data:
        progress("compress", f"{source} was made from other rows: its train rows may be test rows here")
    return found


def _plain(audit: Audit, verdict: Verdict | None) -> dict[str, Any]:
    said = "" if verdict is None else f"\n{'promise':>12}  {SAID[verdict.status]}: {verdict.reason}"
    return {
        "facts": audit.facts,
        "baseline": audit.baseline,
        "latency_ms": {str(batch): found.plain() for batch, found in audit.latencies.items()},
        "gate": {"passes": audit.gate.passes, "reason": audit.gate.reason},
        "promise": None if verdict is None else verdict.plain(),
        "text": f"{audit}{said}",
    }


def read_plan(plan: str) -> list[Any]:
    """The steps of a plan file, or of a plan written out.

    Raises:
        ConfigError: it cannot be read, or is no list of steps, or an empty one.
    """
    place = Path(plan)
    written = plan.lstrip().startswith(("[", "{", "-"))
    try:
        found = yaml_value(plan if written else place.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"the plan cannot be read ({reason})", plan, "give a YAML file or a list"
        ) from error
    if isinstance(found, dict):
        found = found.get("plan", [found])
    if not (isinstance(found, list) and found and all(isinstance(step, dict) for step in found)):
        raise ConfigError(
            "a plan is a list of one step or more", plan, "like [{kind: prune_channels, amount: 0.5}]"
        )
    return found
