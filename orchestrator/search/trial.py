"""One trial: apply the plan, run the variant in its execution, score it. A plain function, no Ray.

Its result is a stage in the store, so a repeated trial, in this search or in one that was killed, is
answered at once. Latency is not part of it: that is measured later, while the cluster is quiet.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from orchestrator.compression.plan import Context, apply_plan
from orchestrator.config.base import Settings, fingerprint
from orchestrator.config.imports import ImportPath
from orchestrator.config.measure import Execution, Metric
from orchestrator.config.search import SearchSettings
from orchestrator.config.steps import Precision
from orchestrator.data.dataset import Dataset
from orchestrator.data.load import open_cached
from orchestrator.errors import CompressionError, ExecutionError
from orchestrator.measure.quality import larger_is_better, non_inferior, score
from orchestrator.runtime.outputs import outputs_on
from orchestrator.search.objectives import PARENT, TrialRow
from orchestrator.search.space import Config, executions_of, name_of, plan_of, precision_of
from orchestrator.store.store import Store
from orchestrator.training.state import EpochReport

_VERSION = 3
"""Raise when this stage's result would differ for the same input."""

log = logging.getLogger(__name__)


class TrialJob(Settings):
    """What all trials of one search share: plain values, so that it crosses process boundaries."""

    search: SearchSettings
    parent: str
    """Digest of the artifact to compress."""
    store: str
    data_folder: str
    """The decoded rows (`open_cached`)."""
    data_digest: str
    metric: Metric
    seed: int
    allowed: tuple[ImportPath, ...] = ()
    what: dict[str, str] = Field(default_factory=lambda: _here())
    """Library version and instruction set of the driver: another one is another search."""


class Outcome(Settings):
    """A trial's result as the store keeps it."""

    digest: str = ""
    execution: Execution = "eager"
    """That it runs and was scored in."""
    metric: float = 0.0
    drop: float = 0.0
    drop_bound: float = 0.0
    bytes: int = 0
    failure: str = ""
    """The sentence of a failure that would come again; empty when the trial succeeded."""


OnEpoch = Callable[[EpochReport], None]


def evaluate(job: TrialJob, config: Config, on_epoch: OnEpoch | None = None) -> Outcome:
    """Compress, run and score one variant, or take that from the store.

    A `CompressionError` is a result (it would come again); any other error is raised. `on_epoch` is called
    after each epoch of a recovery.
    """
    store = Store(job.store)

    def compute() -> dict[str, Any]:
        try:
            return _compress_and_score(store, job, config, on_epoch).plain()
        except CompressionError as error:
            return Outcome(failure=str(error)).plain()

    outcome = Outcome.model_validate(store.stage_value(trial_key(job, config), compute))
    if _is_gone(store, outcome):
        # The artifact was removed from the store; made again it has the same digest.
        outcome = Outcome.model_validate(compute())
    return outcome


def known(store: Store, job: TrialJob, config: Config) -> Outcome | None:
    """The stored result of a trial that ended, in this search or before; None when it has to run."""
    text = store.stage_result(trial_key(job, config))
    if text is None:
        return None
    outcome = Outcome.model_validate_json(text)
    return None if _is_gone(store, outcome) else outcome


def trial_key(job: TrialJob, config: Config) -> str:
    """Stage key: everything that decides the outcome."""
    search = job.search
    what = {
        "stage": "trial",
        "version": _VERSION,
        "parent": job.parent,
        "plan": [step.plain() for step in plan_of(config, search)],
        "executions": list(executions_of(precision_of(config), search)),
        "data": job.data_digest,
        "metric": job.metric.plain(),
        "confidence": search.promise.confidence,
        "seed": job.seed,
        "threads": [search.cpus, search.latency.threads],
        "what": job.what,
    }
    return fingerprint(what)


def row_of(number: int, config: Config, outcome: Outcome, job: TrialJob) -> TrialRow:
    """The trial as a row that still lacks its latency."""
    if outcome.failure:
        wanted = executions_of(precision_of(config), job.search)[0]
        return TrialRow(number, name_of(config), wanted, config).failed(outcome.failure)
    return TrialRow(
        number=number,
        name=name_of(config),
        execution=outcome.execution,
        config=config,
        digest=outcome.digest,
        metric=outcome.metric,
        drop=outcome.drop,
        drop_bound=outcome.drop_bound,
        violation=outcome.drop - job.search.promise.max_drop,
        bytes=outcome.bytes,
    )


def parent_row(job: TrialJob, name: str) -> TrialRow:
    """The parent in eager fp32, without its latency: what every drop and ratio is against."""
    store, dataset = Store(job.store), open_cached(Path(job.data_folder))
    outputs = _outputs(store, job, dataset, job.parent, "eager")
    value = score(job.metric, outputs, dataset.part("validation").targets, allowed=job.allowed)
    return TrialRow(
        PARENT, name, "eager", digest=job.parent, metric=value, bytes=store.artifact_bytes(job.parent)
    )


def _here() -> dict[str, str]:
    return {"torch": torch.__version__, "isa": torch.backends.cpu.get_cpu_capability()}


def _is_gone(store: Store, outcome: Outcome) -> bool:
    return bool(outcome.digest) and not store.has(outcome.digest)


def _compress_and_score(store: Store, job: TrialJob, config: Config, on_epoch: OnEpoch | None) -> Outcome:
    search = job.search
    torch.set_num_threads(search.cpus)
    dataset = open_cached(Path(job.data_folder))
    plan = plan_of(config, search)
    digest = job.parent
    if plan:
        context = Context(
            calibration=dataset.part("calibration").inputs,
            train=dataset.part("train"),
            validation=dataset.part("validation"),
            seed=job.seed,
            threads=search.cpus,
            data=job.data_digest,
            metric=job.metric,
            allowed=job.allowed,
            on_epoch=on_epoch,
        )
        digest = apply_plan(store, job.parent, plan, context)
    execution, outputs = _first_outputs(store, job, dataset, digest, precision_of(config))
    reference = _outputs(store, job, dataset, job.parent, "eager")
    targets = dataset.part("validation").targets
    value = score(job.metric, outputs, targets, allowed=job.allowed)
    if not (np.isfinite(outputs).all() and math.isfinite(value)):
        raise CompressionError("the variant's outputs are not finite", name_of(config))
    before = score(job.metric, reference, targets, allowed=job.allowed)
    verdict = non_inferior(job.metric, outputs, reference, targets, search.promise, allowed=job.allowed)
    return Outcome(
        digest=digest,
        execution=execution,
        metric=value,
        drop=before - value if larger_is_better(job.metric) else value - before,
        drop_bound=verdict.bound,
        bytes=store.artifact_bytes(digest),
    )


def _first_outputs(
    store: Store, job: TrialJob, dataset: Dataset, digest: str, precision: Precision
) -> tuple[Execution, NDArray[np.float32]]:
    """The first execution of this precision that the variant runs in, and its outputs there."""
    *preferred, last = executions_of(precision, job.search)
    for execution in preferred:
        try:
            return execution, _outputs(store, job, dataset, digest, execution)
        except ExecutionError as error:
            log.info("%s runs %s: %s", digest[:12], last, error)
    return last, _outputs(store, job, dataset, digest, last)


def _outputs(
    store: Store, job: TrialJob, dataset: Dataset, digest: str, execution: Execution
) -> NDArray[np.float32]:
    """Float32 [N, K] on the validation part, in this execution, from the store when it has them."""
    return outputs_on(
        store, digest, execution, dataset, "validation", job.search.latency, allowed=job.allowed
    )
