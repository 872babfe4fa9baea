"""One trial: make the variant, run it in its execution, score it. A plain function, no Ray.

How a variant is made is a matter of its job's class: here by a compression plan, in `tuning.py` by training.

Its result is a stage in the store, so a repeated trial, in this search or in one that was killed, is
answered at once; one that was stopped early is noted in the study's ledger, since that depended on other
trials. Latency is not part of it: that is measured later, while the cluster is quiet.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from functools import singledispatch
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from orchestrator.compression.plan import Context, apply_plan, here
from orchestrator.config import steps
from orchestrator.config.base import Settings, fingerprint
from orchestrator.config.imports import ImportPath
from orchestrator.config.measure import Execution, Metric
from orchestrator.config.search import Promise, Searching, SearchSettings
from orchestrator.config.steps import ChannelPruning, Distill, Plan
from orchestrator.data.dataset import Dataset
from orchestrator.data.load import open_cached
from orchestrator.errors import (
    CompressionError,
    ExecutionError,
    OrchestratorError,
    TrainingError,
    UnavailableError,
)
from orchestrator.measure.cost import count
from orchestrator.measure.metrics import larger_is_better, score
from orchestrator.measure.promise import non_inferior
from orchestrator.models.build import build
from orchestrator.runtime.allocator import keep_freed_memory
from orchestrator.runtime.execute import lacking
from orchestrator.runtime.outputs import outputs_on
from orchestrator.runtime.rebuild import rebuild
from orchestrator.search.arms import EAGER, arm_of
from orchestrator.search.early_stop import Report
from orchestrator.search.ledger import Ledger
from orchestrator.search.objectives import PARENT, TrialRow
from orchestrator.search.outcome import Outcome
from orchestrator.search.space import Config, executions_of, meaning_of, name_of, plan_of, variant_key
from orchestrator.store.store import Store
from orchestrator.training.checkpoint import Stopped
from orchestrator.training.device import device_of
from orchestrator.training.state import EpochReport

_FIGURES = ("digest", "execution", "metric", "drop", "drop_bound", "changed", "class_drop", "bytes")
"""That a row takes from an outcome."""
_VERSION = 8
"""Raise when this stage's result would differ for the same input."""

_HOW = ("trials", "minutes", "targets", "driver", "arms", "small", "memory_bytes", "labels")
"""Search settings that do not decide what a trial of a given number is."""

log = logging.getLogger(__name__)


class Job(Settings):
    """What all trials of one search share: plain values, so that it crosses process boundaries."""

    failures: ClassVar[tuple[type[OrchestratorError], ...]]
    """Errors that are a trial's result: they would come again."""

    kind: str
    search: Searching
    parent: str
    """Digest of the artifact that every trial is compared with."""
    store: str
    data_folder: str
    """The decoded rows (`open_cached`)."""
    data_digest: str
    metric: Metric
    seed: int
    allowed: tuple[ImportPath, ...] = ()
    what: dict[str, str] = Field(default_factory=here)
    """Library version and instruction set of the driver: another one is another search."""
    bench: str = ""
    """Fingerprint of the machine that latencies are measured on: on another one the ledger is another, while
    what was trained is taken over."""
    lacking: tuple[Execution, ...] = Field(default_factory=lacking)
    """Executions that the driver's machine has no tools for: variants run in the next one of theirs."""


class TrialJob(Job):
    """Of trials that compress the parent."""

    failures = (CompressionError, TrainingError)

    kind: Literal["compression"] = "compression"
    search: SearchSettings


OnEpoch = Callable[[EpochReport], None]
GoesOn = Callable[[Report], bool]
"""Whether a trial goes on after an epoch (`early_stop`)."""


def evaluate(
    job: Job, config: Config, on_epoch: OnEpoch | None = None, goes_on: GoesOn | None = None
) -> Outcome:
    """Make, run and score one variant, or take that from the store.

    An error of the job's `failures` is a result (it would come again); any other error is raised. `on_epoch`
    is called after each epoch that is trained, then `goes_on`, which may end the trial there.
    """
    keep_freed_memory()
    store = Store(job.store)
    if (before := known(store, job, config)) is not None:
        return before
    epochs = Epochs(job, config, on_epoch, goes_on)

    def compute() -> dict[str, Any]:
        try:
            found = make(job, store, config, epochs)
        except job.failures as error:
            found = Outcome(failure=str(error), untrained=isinstance(error, TrainingError))
        return found.model_copy(update=epochs.plain()).plain()

    try:
        outcome = Outcome.model_validate(store.stage_value(trial_key(job, config), compute))
        if _is_gone(store, outcome):
            # The artifact was removed from the store; made again it has the same digest.
            outcome = Outcome.model_validate(compute())
    except Stopped:
        outcome = Outcome(stopped=True, metric=epochs.curve[-1]).model_copy(update=epochs.plain())
        Ledger(store, study_settings(job)).stop(variant_key(config, job.search), outcome.plain())
    return outcome


def known(store: Store, job: Job, config: Config) -> Outcome | None:
    """The stored result of a trial that ended, in this search or before; None when it has to run."""
    if job.search.early_stop is not None and arm_of(config) is None:
        # Before the stage: another study may have trained the whole since, and this one goes on as it began.
        stopped = Ledger(store, study_settings(job)).stopped(variant_key(config, job.search))
        if stopped is not None:
            return Outcome.model_validate(stopped)
    # What a machine with all tools found counts, too, where it can be measured here.
    for key in dict.fromkeys(trial_key(one, config) for one in (job.model_copy(update={"lacking": ()}), job)):
        text = store.stage_result(key)
        outcome = None if text is None else Outcome.model_validate_json(text)
        if outcome is not None and outcome.execution not in job.lacking and not _is_gone(store, outcome):
            return outcome
    return None


@singledispatch
def make(job: Job, store: Store, config: Config, epochs: Epochs) -> Outcome:
    """Make the variant of a config, run it and score it; `epochs` is called after each epoch."""
    raise NotImplementedError(type(job))


@singledispatch
def trial_key(job: Job, config: Config) -> str:
    """Stage key: everything that decides the outcome."""
    raise NotImplementedError(type(job))


@singledispatch
def epochs_of(job: Job, config: Config) -> int:
    """Epochs that a config trains in all, at most."""
    raise NotImplementedError(type(job))


@singledispatch
def settings_of(job: Job, config: Config) -> tuple[dict[str, Any], ...]:
    """What the row of a trial shows where the variant itself does not tell how it was made."""
    del job, config
    return ()


@trial_key.register
def _(job: TrialJob, config: Config) -> str:
    search = job.search
    what = {
        "stage": "trial",
        "version": _VERSION,
        "parent": job.parent,
        "plan": [step.plain() for step in plan_of(config, search)],
        "executions": list(executions_of(config, search, job.lacking)),
        "data": job.data_digest,
        "metric": job.metric.plain(),
        "confidence": search.promise.confidence,
        "seed": job.seed,
        "threads": [search.cpus, search.latency.threads],
        "what": job.what,
        **({"device": "cuda"} if search.gpus > 0 else {}),
    }
    return fingerprint(what)


@epochs_of.register
def _(job: TrialJob, config: Config) -> int:
    return steps.epochs_of(plan_of(config, job.search))


def study_settings(job: Job) -> dict[str, Any]:
    """What makes two searches the same study, as plain values: all but how many trials it has, how and where
    they run."""
    search = job.search.plain()
    for name in _HOW:
        search.pop(name, None)
    what = job.plain()
    names = ("parent", "data_digest", "metric", "seed", "what", "entry", "teacher")
    more = ({"bench": job.bench} if job.bench else {}) | meaning_of(job.search)
    return {name: what[name] for name in names if name in what} | more | {"search": search}


def row_of(number: int, config: Config, outcome: Outcome, job: Job) -> TrialRow:
    """The trial as a row that still lacks its latency."""
    name, arm = name_of(config, job.search), arm_of(config) or ""
    wanted, plan = executions_of(config, job.search, job.lacking)[0], settings_of(job, config)
    if outcome.failure:
        return TrialRow(number, name, wanted, config, arm=arm, plan=plan).failed(outcome.failure)
    if outcome.stopped:
        row = TrialRow(number, name, wanted, config, arm=arm, plan=plan, metric=outcome.metric)
        return dataclasses.replace(
            row,
            status="stopped",
            epochs=outcome.epochs[-1],
            reason=f"stopped after epoch {outcome.epochs[-1]}",
        )
    figures: dict[str, Any] = {figure: getattr(outcome, figure) for figure in _FIGURES}
    row = TrialRow(number=number, name=name, config=config, arm=arm, plan=plan, **figures)
    return row.limited(job.search)


def parent_row(job: Job, name: str) -> TrialRow:
    """The parent in eager fp32, without its latency: what every drop and ratio is against."""
    store, dataset = Store(job.store), open_cached(Path(job.data_folder))
    outputs = _outputs(store, job, dataset, job.parent, "eager")
    value = score(job.metric, outputs, dataset.part("validation").targets, allowed=job.allowed)
    return TrialRow(
        PARENT,
        name,
        "eager",
        digest=job.parent,
        metric=value,
        bytes=store.artifact_bytes(job.parent),
        arm=EAGER,
    )


def _is_gone(store: Store, outcome: Outcome) -> bool:
    return bool(outcome.digest) and not store.has(outcome.digest)


class Epochs:
    """Follows a trial's epochs: keeps the curve, passes reports on, ends the trial when it is told to."""

    def __init__(
        self, job: Job, config: Config, on_epoch: OnEpoch | None = None, goes_on: GoesOn | None = None
    ) -> None:
        self.cost = 0.0
        self.curve: list[float] = []
        self.numbers: list[int] = []
        self._job, self._on_epoch, self._goes_on = job, on_epoch, goes_on
        self._name, self._total = variant_key(config, job.search), epochs_of(job, config)

    def plain(self) -> dict[str, Any]:
        """What an outcome keeps of them."""
        return {"cost": self.cost, "curve": tuple(self.curve), "epochs": tuple(self.numbers)}

    def __call__(self, report: EpochReport) -> None:
        """Take an epoch's report.

        Raises:
            Stopped: the trial is not to go on.
        """
        number = report.epoch + 1
        self.curve.append(report.metric)
        self.numbers.append(number)
        if self._on_epoch is not None:
            self._on_epoch(report)
        if self._goes_on is None:
            return
        metric = report.metric if larger_is_better(self._job.metric) else -report.metric
        if not self._goes_on(Report(self._name, number, self.cost, metric, self._total)):
            raise Stopped(self._name)


def _cost(store: Store, job: TrialJob, plan: Plan, context: Context) -> float:
    """Operations of a row, as they are known before the first training that is judged.

    The number type does not count: what is judged is a float training, and any type may follow it.
    """
    if plan and isinstance(plan[0], Distill):
        signature = store.manifest(job.parent).signature
        student = build(plan[0].model, signature, allowed=job.allowed, seed=0)
        return float(count(student, signature).macs)
    head = plan[: _unjudged(plan)]
    rebuilt = rebuild(store, apply_plan(store, job.parent, head, context), allowed=job.allowed)
    return float(count(rebuilt.module, rebuilt.manifest.signature).macs)


def _unjudged(plan: Plan) -> int:
    """How many steps of a plan that trains come before the first training that is judged.

    What channel pruning trains between its rounds is not: the model still gets cheaper.
    """
    training = [place for place, step in enumerate(plan) if steps.epochs_of([step])]
    judged = (place for place in training if not isinstance(plan[place], ChannelPruning))
    return next(judged, training[-1] + 1)


@make.register
def _(job: TrialJob, store: Store, config: Config, epochs: Epochs) -> Outcome:
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
            device=device_of(search.gpus),
            data=job.data_digest,
            metric=job.metric,
            allowed=job.allowed,
            on_epoch=epochs,
        )
        if search.early_stop is not None and steps.epochs_of(plan):
            # What is trained before the cost is known is not judged.
            epochs.cost = _cost(store, job, plan, dataclasses.replace(context, on_epoch=None))
        digest = apply_plan(store, job.parent, plan, context)
    return scored(job, store, dataset, digest, config, search.promise)


def scored(
    job: Job, store: Store, dataset: Dataset, digest: str, config: Config, promise: Promise
) -> Outcome:
    """The variant's figures on the validation part, in the first of its executions that it runs in."""
    execution, outputs = _first_outputs(store, job, dataset, digest, config)
    reference = _outputs(store, job, dataset, job.parent, "eager")
    targets = dataset.part("validation").targets
    if not np.isfinite(outputs).all():
        raise job.failures[0]("the variant's outputs are not finite", name_of(config, job.search))
    value = score(job.metric, outputs, targets, allowed=job.allowed)
    before = score(job.metric, reference, targets, allowed=job.allowed)
    verdict = non_inferior(job.metric, outputs, reference, targets, promise, allowed=job.allowed)
    return Outcome(
        digest=digest,
        execution=execution,
        metric=value,
        drop=before - value if larger_is_better(job.metric) else value - before,
        drop_bound=verdict.bound,
        changed=verdict.changed,
        class_drop=verdict.class_drop,
        bytes=store.artifact_bytes(digest),
    )


def _first_outputs(
    store: Store, job: Job, dataset: Dataset, digest: str, config: Config
) -> tuple[Execution, NDArray[np.float32]]:
    """The first of the config's executions that the variant runs in, and its outputs there."""
    *preferred, last = executions_of(config, job.search, job.lacking)
    for execution in preferred:
        try:
            return execution, _outputs(store, job, dataset, digest, execution)
        except UnavailableError:
            raise  # of this machine, while the outcome is kept for all
        except ExecutionError as error:
            log.info("%s runs %s: %s", digest[:12], last, error)
    return last, _outputs(store, job, dataset, digest, last)


def _outputs(
    store: Store, job: Job, dataset: Dataset, digest: str, execution: Execution
) -> NDArray[np.float32]:
    """Float32 [N, K] on the validation part, in this execution, from the store when it has them."""
    return outputs_on(
        store, digest, execution, dataset, "validation", job.search.latency, allowed=job.allowed
    )
