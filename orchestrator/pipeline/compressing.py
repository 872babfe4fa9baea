"""Variants that the run file describes: each a plan on a model, a task on the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator.cluster import fitting
from orchestrator.compression.plan import Context, apply_plan, plan_key
from orchestrator.config.base import Settings
from orchestrator.config.ensemble import Member
from orchestrator.config.imports import ImportPath
from orchestrator.config.measure import Execution, Metric
from orchestrator.config.steps import Plan, with_others
from orchestrator.config.variant import VariantEntry
from orchestrator.data.load import open_cached
from orchestrator.errors import CompressionError, OrchestratorError, first_line, last_line
from orchestrator.mailbox import Mailbox, deliver, open_mailbox, send
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.watching import epoch_of
from orchestrator.progress import Training
from orchestrator.runtime.allocator import keep_freed_memory
from orchestrator.runtime.execute import executions
from orchestrator.store.store import Store
from orchestrator.training.device import device_of
from orchestrator.training.state import EpochReport

POLL_S = 0.5


class VariantJob(Settings):
    """One variant as plain values, so that it crosses process boundaries."""

    name: str
    parent: str
    """Digest of the artifact to compress."""
    plan: Plan
    """Other models and ensembles by digest."""
    store: str
    data_folder: str
    """The decoded rows (`open_cached`)."""
    data_digest: str
    metric: Metric
    seed: int
    threads: int
    gpus: float = 0
    allowed: tuple[ImportPath, ...] = ()

    def key(self) -> str:
        """Stage key of the finished variant."""
        device = "cuda" if self.gpus > 0 else "cpu"
        return plan_key(
            self.parent, self.plan, self.data_digest, self.seed, self.threads, self.metric, device
        )


def compress_variants(run: Run, models: dict[str, str]) -> dict[str, Member]:
    """Make every variant of the run file that needs no ensemble; name each `<run>/<variant>`.

    Returns:
        Variant name -> member, in the order of the run file.

    Raises:
        CompressionError: a plan does not fit its parent; the sentence names the variant.
        ResourceError: the cluster can never hold one of them.
    """
    digests = dict(models)
    members = {}
    for name in run.config.variants:
        if name not in run.config.taught():
            members[name] = compress_variant(run, name, digests)
            digests[name] = members[name].digest
    return members


def compress_variant(run: Run, name: str, digests: Mapping[str, str]) -> Member:
    """One variant of the run file, from the store or made now.

    Args:
        run: whose.
        name: of the variant.
        digests: of the run's models, variants and ensembles that it may be made of, by name.

    Raises:
        CompressionError: the plan does not fit its parent; the sentence names the variant.
        ResourceError: the cluster can never hold it.
    """
    entry = run.config.variants[name]
    digest = _made(run, _job(run, name, entry, digests), entry)
    run.name_artifact(name, digest)
    return Member(name=name, digest=digest, execution=_execution(run, digest, entry))


def make_variant(job: VariantJob, mailbox: Mailbox | None = None) -> str:
    """Apply the plan; the digest of the variant. The mailbox, if there is one, is told of epochs."""
    keep_freed_memory()
    store, dataset = Store(job.store), open_cached(Path(job.data_folder))
    context = Context(
        calibration=dataset.part("calibration").inputs,
        train=dataset.part("train"),
        validation=dataset.part("validation"),
        seed=job.seed,
        threads=job.threads,
        device=device_of(job.gpus),
        data=job.data_digest,
        metric=job.metric,
        allowed=job.allowed,
        on_epoch=None if mailbox is None else lambda report: send(mailbox, job.name, report.plain()),
    )
    return apply_plan(store, job.parent, job.plan, context)


def _job(run: Run, name: str, entry: VariantEntry, digests: Mapping[str, str]) -> VariantJob:
    def digest(other: str) -> str:
        return digests.get(other) or run.store.resolve(other)

    return VariantJob(
        name=name,
        parent=digests[entry.parent],
        plan=tuple(with_others(step, digest) for step in entry.plan),
        store=run.store.location,
        data_folder=str(run.dataset.folder),
        data_digest=run.dataset.digest,
        metric=run.config.metric,
        seed=run.config.seed,
        threads=entry.cpus,
        gpus=entry.gpus,
        allowed=tuple(sorted(run.allowed)),
    )


def _made(run: Run, job: VariantJob, entry: VariantEntry) -> str:
    steps = " > ".join(step.kind for step in job.plan)
    known = run.store.stage_result(job.key())
    if known is not None:
        run.progress("compress", f"{job.name}: finished before")
        return known
    run.progress("compress", f"{job.name}: {steps} on {entry.parent}")
    run.cluster()
    fitting(f"variant {job.name}", entry.cpus, entry.gpus, f"variants.{job.name}")
    task = ray.remote(make_variant).options(num_cpus=entry.cpus, num_gpus=entry.gpus, max_retries=1)
    try:
        digest = _followed(run, task, job)
    except RayTaskError as error:
        cause = error.cause
        own = isinstance(cause, OrchestratorError)
        said = str(cause) if own else f"{type(cause).__name__}: {last_line(cause)}"
        raise CompressionError(f"variant {job.name}: {said}") from None
    except RayError as error:
        raise CompressionError(f"variant {job.name} was lost", first_line(error), "run again") from error
    said = f"{job.name}: {run.store.artifact_bytes(digest):,} bytes"
    run.progress("compress", said, Training(job.name, "trained"))
    return digest


def _followed(run: Run, task: Any, job: VariantJob) -> str:
    """The task's result; what it tells meanwhile goes to the log."""
    mailbox = open_mailbox()

    def tell(name: str, epoch: dict[str, Any]) -> None:
        report = EpochReport(**epoch)
        text = f"{name}: {report.text(run.config.metric.label)}"
        run.progress("compress", text, epoch_of(run, name, report))

    try:
        reference = task.remote(job, mailbox)
        ended = False
        while not ended:
            ended = bool(ray.wait([reference], timeout=POLL_S)[0])
            with suppress(RayError):  # a lost mailbox loses lines of a log and no more
                deliver(mailbox, tell)
    finally:
        ray.kill(mailbox)
    digest: str = ray.get(reference)
    return digest


def _execution(run: Run, digest: str, entry: VariantEntry) -> Execution:
    possible = executions(run.store.manifest(digest))
    if entry.execution is None:
        return possible[0]
    if entry.execution not in possible:
        raise CompressionError(
            "the variant cannot run in this execution", entry.execution, f"choose {' or '.join(possible)}"
        )
    return entry.execution
