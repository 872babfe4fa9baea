"""An artifact's outputs on a part of the data: computed once in each execution, then read from the store."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.config.base import fingerprint
from orchestrator.config.data import PartName
from orchestrator.config.measure import Execution, LatencySettings
from orchestrator.data.dataset import Dataset
from orchestrator.measure.corrupt import Shift, corrupt
from orchestrator.measure.machine import library_versions, machine
from orchestrator.runtime.execute import load, predict
from orchestrator.store.store import Store


def outputs_on(
    store: Store,
    digest: str,
    execution: Execution,
    dataset: Dataset,
    part: PartName,
    latency: LatencySettings,
    *,
    allowed: Collection[str] = (),
) -> NDArray[np.float32]:
    """Logits, or values in raw units, float32 [N, K].

    Args:
        store: where the artifact is and its outputs are kept.
        digest: of the artifact.
        execution: how it runs.
        dataset: whose rows.
        part: which of them.
        latency: its threads and batch are those of the execution.
        allowed: import paths that an imported model's factory may come from.

    Raises:
        ExecutionError: the artifact does not run so on this machine.
        ModelError: the factory is not allowed.
        CorruptArtifactError: a file is damaged.
    """
    rows = dataset.part(part)
    key = _key(part, dataset.digest, execution, latency)
    kept = store.predictions(digest, key, rows.ids)
    if kept is not None:
        return kept
    executable = load(store, digest, execution, threads=latency.threads, batch=latency.batch, allowed=allowed)
    outputs = predict(executable, rows.inputs)
    store.put_predictions(digest, key, rows.ids, outputs)
    return outputs


def shifted_outputs(
    store: Store,
    digest: str,
    execution: Execution,
    dataset: Dataset,
    part: PartName,
    latency: LatencySettings,
    *,
    shifts: Sequence[tuple[Shift, int]],
    rows: int,
    seed: int = 0,
    allowed: Collection[str] = (),
) -> list[NDArray[np.float32]]:
    """Outputs on the first rows of a part, shifted: one array float32 [rows, K] a (kind, severity).

    Args:
        store: where the artifact is and its outputs are kept.
        digest: of the artifact.
        execution: how it runs.
        dataset: whose rows.
        part: which of them.
        latency: its threads and batch are those of the execution.
        shifts: kinds and severities (`measure.corrupt`).
        rows: how many of the part's rows, at most.
        seed: of what is random in a shift.
        allowed: import paths that an imported model's factory may come from.

    Raises:
        ExecutionError: the artifact does not run so on this machine.
    """
    chosen = dataset.part(part)
    ids, inputs = chosen.ids[:rows], chosen.inputs[:rows]
    base = _key(part, f"{dataset.digest}, shifted from seed {seed}", execution, latency)
    keys = {(shift, severity): f"{shift}{severity}-{base}" for shift, severity in shifts}
    kept = {shift: store.predictions(digest, key, ids) for shift, key in keys.items()}
    found = {shift: outputs for shift, outputs in kept.items() if outputs is not None}
    missing = [shift for shift in shifts if shift not in found]
    if missing:
        executable = load(
            store, digest, execution, threads=latency.threads, batch=latency.batch, allowed=allowed
        )
        for kind, severity in missing:
            shifted = corrupt(inputs, ids, dataset.signature, kind, severity, seed=seed)
            found[kind, severity] = predict(executable, shifted)
            store.put_predictions(digest, keys[kind, severity], ids, found[kind, severity])
    return [found[shift] for shift in shifts]


def foreign_outputs(
    store: Store,
    digest: str,
    execution: Execution,
    rows: Mapping[str, NDArray[Any]],
    latency: LatencySettings,
    *,
    source: str,
    allowed: Collection[str] = (),
) -> dict[str, NDArray[np.float32]]:
    """Outputs on rows of no part of the data: by kind, float32 [N, K].

    Args:
        store: where the artifact is and its outputs are kept.
        digest: of the artifact.
        execution: how it runs.
        rows: by kind [N, *input_shape].
        latency: its threads and batch are those of the execution.
        source: names all that decides the rows.
        allowed: import paths that an imported model's factory may come from.

    Raises:
        ExecutionError: the artifact does not run so on this machine.
    """
    keys = {kind: _key("elsewhere", f"{source}, {kind}", execution, latency) for kind in rows}
    kept = {
        kind: store.predictions(digest, keys[kind], np.arange(len(found))) for kind, found in rows.items()
    }
    found = {kind: outputs for kind, outputs in kept.items() if outputs is not None}
    if len(found) < len(rows):
        executable = load(
            store, digest, execution, threads=latency.threads, batch=latency.batch, allowed=allowed
        )
        for kind in rows.keys() - found.keys():
            found[kind] = predict(executable, rows[kind])
            store.put_predictions(digest, keys[kind], np.arange(len(rows[kind])), found[kind])
    return found


def _key(part: str, data: str, execution: Execution, latency: LatencySettings) -> str:
    """Names all that an output's last bits depend on."""
    facts = {
        "data": data,
        "threads": latency.threads,
        "batch": latency.batch,
        # torch's own name of the CPU's instructions knows neither VNNI nor AMX.
        "isa": [torch.backends.cpu.get_cpu_capability(), machine()["isa"]],
        "versions": {
            name: version
            for name, version in library_versions().items()
            if name != "openvino" or execution == "openvino"
        },
    }
    return f"{part}-{execution}-{fingerprint(facts)[:24]}"
