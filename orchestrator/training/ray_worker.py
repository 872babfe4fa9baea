"""What one Ray Train worker does: the loop, a checkpoint an epoch, and at the end the artifact."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from torch import nn

from orchestrator.data.dataset import Dataset, Part
from orchestrator.data.load import open_cached
from orchestrator.errors import CorruptArtifactError, OrchestratorError
from orchestrator.mailbox import Mailbox, send
from orchestrator.runtime.bf16 import has_bf16_kernels
from orchestrator.store.store import Store
from orchestrator.training import sharding
from orchestrator.training.batches import Views
from orchestrator.training.fitting import (
    module_of,
    said_by_others,
    signature_of,
    store_results,
    train_rows,
)
from orchestrator.training.job import TrainJob
from orchestrator.training.loop import train
from orchestrator.training.offset import Offset
from orchestrator.training.state import EpochReport, TrainState

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint"


def work(config: dict[str, Any]) -> dict[str, Any]:
    """Train one model; every rank runs this.

    A failure that would come again after a restart (a bad setting, a loss that explodes) is returned, so that
    Ray spends its retries on dead workers alone.

    Args:
        config: `job` (`TrainJob.plain`) and `mailbox` (handle of the actor that takes reports).

    Returns:
        `{"digest": ...}` on rank 0, or `{"error": [what, value, fix]}`.
    """
    job = TrainJob.from_plain(config["job"])
    try:
        return {"digest": _train(job, config["mailbox"])}
    except OrchestratorError as error:
        return {"error": [error.what, error.value, error.fix]}


@dataclass(frozen=True)
class _Ready:
    """What a worker has before its first step."""

    dataset: Dataset
    store: Store
    rows: Part
    state: TrainState
    module: nn.Module
    others: Views | Offset | None


def _train(job: TrainJob, mailbox: Mailbox) -> str:
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    training, resources = job.entry.training, job.entry.resources
    torch.set_num_threads(resources.cpus)
    device = ray.train.torch.get_device() if resources.gpus else torch.device("cpu")
    with sharding.failing_together(world):
        ready = _prepare(job, device, rank, world, mailbox)
    reports = train(
        ready.module,
        ready.rows,
        ready.dataset.part("validation"),
        training,
        signature=signature_of(job, ready.dataset),
        metric=job.metric,
        seed=job.seed,
        sample_seed=job.sample_seed,
        threads=resources.cpus,
        device=device,
        teacher=ready.others,
        state=ready.state,
        rank=rank,
        world=world,
        strategy=resources.strategy,
        allowed=job.allowed,
    )
    for report in reports:
        _report(job.name, report, ready.state, rank, mailbox)
    return store_results(job, ready.store, ready.dataset, ready.state, world, device) if rank == 0 else ""


def _prepare(job: TrainJob, device: torch.device, rank: int, world: int, mailbox: Mailbox) -> _Ready:
    """Open what the training needs; rank 0 also computes the outputs of others that are missing."""
    dataset, store = open_cached(Path(job.data_folder)), Store(job.store, create=False)
    rows = train_rows(job, dataset)
    state = _last_state()
    if rank == 0:
        _announce(job, state, len(rows.ids), world, device, mailbox)
    module, others = module_of(job, signature_of(job, dataset)), None
    if not state.finished:
        others = said_by_others(job, store, dataset, rows, device, fill=rank == 0)
    return _Ready(dataset, store, rows, state, module, others)


def _last_state() -> TrainState:
    """Where an earlier attempt stopped. A damaged checkpoint costs time, not the run: it starts over."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return TrainState()
    with checkpoint.as_directory() as folder:
        try:
            return TrainState.load(folder)
        except CorruptArtifactError as error:
            log.warning("%s; training starts over", error)
            return TrainState()


def _announce(
    job: TrainJob, state: TrainState, rows: int, world: int, device: torch.device, mailbox: Mailbox
) -> None:
    """Say that the first epoch begins: it may take minutes."""
    training, cpus = job.entry.training, job.entry.resources.cpus
    where = f"{world} worker{'s' * (world > 1)} x {cpus} core{'s' * (cpus > 1)}, {device.type}"
    begins = f"goes on after epoch {state.epoch}" if state.epoch else "starts"
    several = f" for {job.entry.yields} models" if job.entry.yields > 1 else ""
    send(mailbox, job.name, f"{begins}: {training.epochs} epochs of {rows} rows{several}, {where}")
    if training.precision == "bf16" and device.type == "cpu" and not has_bf16_kernels():
        text = (
            "this CPU has no bfloat16 kernels, training in it takes many times as long: "
            f"--set models.{job.name}.training.precision=fp32"
        )
        send(mailbox, job.name, text)


def _report(name: str, report: EpochReport, state: TrainState, rank: int, mailbox: Mailbox) -> None:
    """One epoch to the driver, and the checkpoint from rank 0; every rank must call."""
    if rank > 0:
        ray.train.report(report.plain())
        return
    send(mailbox, name, report.plain())
    with TemporaryDirectory() as folder:
        state.save(folder)
        ray.train.report(
            report.plain(),
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"{CHECKPOINT}-{report.epoch:06d}",
        )
