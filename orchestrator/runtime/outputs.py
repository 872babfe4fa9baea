"""An artifact's outputs on a part of the data: computed once in each execution, then read from the store."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.config.base import fingerprint
from orchestrator.config.data import PartName
from orchestrator.config.measure import Execution, LatencySettings
from orchestrator.data.dataset import Dataset
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


def _key(part: PartName, data: str, execution: Execution, latency: LatencySettings) -> str:
    """Names all that an output's last bits depend on."""
    facts = {
        "data": data,
        "threads": latency.threads,
        "batch": latency.batch,
        "torch": torch.__version__,
        "isa": torch.backends.cpu.get_cpu_capability(),
    }
    return f"{part}-{execution}-{fingerprint(facts)[:24]}"
