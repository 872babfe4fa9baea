"""What is noted beside an artifact so that `orchestrator reproduce` can hold a later figure against it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.config.data import DataSettings, FolderData, ParquetData
from orchestrator.config.measure import Execution, LatencySettings, Metric
from orchestrator.data.dataset import Dataset
from orchestrator.measure.artifacts import Subject
from orchestrator.measure.machine import machine, machine_fingerprint
from orchestrator.measure.quality import quality
from orchestrator.pipeline.context import Run
from orchestrator.runtime.outputs import outputs_on
from orchestrator.store.store import Store


def record_quality(run: Run, subjects: Iterable[Subject], latency: LatencySettings) -> None:
    """Note the run's metric, with its interval, of each (artifact, execution) on the validation part.

    What was noted before stays as it is.

    Args:
        run: its rows, metric and store.
        subjects: what to note.
        latency: threads and batch that they run with.
    """
    for subject in dict.fromkeys(subjects):
        note_quality(
            run.store,
            subject,
            run.dataset,
            source=run.config.data,
            seed=run.config.seed,
            metric=run.config.metric,
            latency=latency,
            allowed=run.allowed,
        )


def note_quality(
    store: Store,
    subject: Subject,
    dataset: Dataset,
    *,
    source: DataSettings,
    metric: Metric,
    latency: LatencySettings,
    allowed: Iterable[str] = (),
    seed: int | None = None,
) -> None:
    """Note one (artifact, execution) once: its figures, and where the rows were read from.

    The record's keys are `kind` ("quality"), `part`, `data` (digest), `execution`, `batch`, `threads` and
    `settings` (the metric's), which name it, then those of `Quality.plain`, `source` (the data section of a
    run file, its folder absolute), `seed` that the rows were cut with where it is known, `machine`,
    `fingerprint` and `time`.
    """
    digest, execution = subject
    key = _key(dataset.digest, execution, metric, latency)
    if any(key.items() <= record.items() for record in store.records(digest)):
        return
    names = tuple(allowed)
    outputs = outputs_on(store, digest, execution, dataset, "validation", latency, allowed=names)
    found = quality(metric, outputs, dataset.part("validation").targets, allowed=names)
    facts = machine()
    record = {
        **key,
        **found.plain(),
        "source": absolute(source).plain(),
        **({} if seed is None else {"seed": seed}),
        "machine": facts,
        "fingerprint": machine_fingerprint(facts),
        "time": time.time(),
    }
    store.add_record(digest, record)


def absolute(source: DataSettings) -> DataSettings:
    """The same data, findable from another working directory."""
    if not isinstance(source, ParquetData | FolderData):
        return source
    return source.model_copy(update={"root": str(Path(source.root).expanduser().absolute())})


def _key(data: str, execution: Execution, metric: Metric, latency: LatencySettings) -> dict[str, Any]:
    return {
        "kind": "quality",
        "part": "validation",
        "data": data,
        "execution": execution,
        "batch": latency.batch,
        "threads": latency.threads,
        "settings": metric.plain(),
    }
