"""What one Ray Train worker does: the loop, a checkpoint an epoch, and at the end the artifact."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from orchestrator.runtime.allocator import keep_freed_memory
from orchestrator.runtime.bf16 import has_bf16_kernels
from orchestrator.store.store import Store
from orchestrator.training import sharding
from orchestrator.training.batches import Views
from orchestrator.training.checkpoint import Checkpoint
from orchestrator.training.fitting import (
    module_of,
    said_by_others,
    signature_of,
    store_results,
    streamed_rows,
    train_rows,
)
from orchestrator.training.job import TrainJob, checkpoint_of
from orchestrator.training.loop import train
from orchestrator.training.offset import Offset
from orchestrator.training.ray_stream import read_ahead
from orchestrator.training.state import TrainState
from orchestrator.training.streamed import Streamed
from orchestrator.training.watch import STEP_TIMEOUT_S, HangGuard, forget_hang, hung_at, trace_file

log = logging.getLogger(__name__)

_v2: Any = ray.train  # At run time this is Train V2; type checkers see V1.

CHECKPOINT = "checkpoint"
LOOK_S = 2.0
"""Between two looks of a lone worker whether its node is about to be taken away."""
LOOK_STEPS = 20
"""The same of several workers, who have to look together."""


def work(config: dict[str, Any]) -> dict[str, Any]:
    """Train one model; every rank runs this.

    A failure that would come again after a restart (a bad setting, a loss that explodes) is returned, so that
    Ray spends its retries on dead workers alone.

    Args:
        config: `job` (`TrainJob.plain`), `mailbox` (handle of the actor that takes reports), and `folder` of
            the run on shared storage.

    Returns:
        `{"digest": ...}` on rank 0, or `{"error": [what, value, fix]}`.
    """
    job = TrainJob.from_plain(config["job"])
    try:
        return {"digest": _train(job, config["mailbox"], Path(config["folder"]))}
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
    streamed: Streamed | None
    others: Views | Offset | None


def _train(job: TrainJob, mailbox: Mailbox, folder: Path) -> str:
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    training, resources = job.entry.training, job.entry.resources
    keep_freed_memory()
    torch.set_num_threads(resources.cpus)
    device = ray.train.torch.get_device() if resources.gpus else torch.device("cpu")
    sharding.wait_long(world)
    with sharding.failing_together(world):
        if rank == 0:
            _tell_hang(job.name, folder, mailbox)
        store = Store(job.store, create=False)
    kept = _Kept(checkpoint_of(job, store), rank, world)
    state = kept.last()
    with sharding.failing_together(world):
        ready = _prepare(job, store, state, device, rank, world, mailbox)
    with _watching(job, folder, kept, mailbox, ready.streamed is not None) as watch:
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
            streamed=ready.streamed,
            teacher=ready.others,
            state=ready.state,
            rank=rank,
            world=world,
            strategy=resources.strategy,
            allowed=job.allowed,
            watch=watch,
        )
        for report in reports:
            watch.alive()
            if rank == 0:
                send(mailbox, job.name, report.plain())
            kept.save(report.plain(), ready.state)
            watch.alive()
    return store_results(job, ready.store, ready.dataset, ready.state, world, device) if rank == 0 else ""


def _prepare(
    job: TrainJob,
    store: Store,
    state: TrainState,
    device: torch.device,
    rank: int,
    world: int,
    mailbox: Mailbox,
) -> _Ready:
    """Open what the training needs; rank 0 also computes the outputs of others that are missing."""
    dataset = open_cached(Path(job.data_folder))
    rows = train_rows(job, dataset)
    streamed = streamed_rows(job, dataset, read_ahead)
    if rank == 0:
        count = len(rows.ids) if streamed is None else streamed.count
        _announce(job, state, count, world, device, mailbox)
    module, others = module_of(job, signature_of(job, dataset)), None
    if not state.finished:
        others = said_by_others(job, store, dataset, rows, device, fill=rank == 0)
    return _Ready(dataset, store, rows, state, module, streamed, others)


class _Kept:
    """The states of a training: in the store, or where there is no checkpoint of it, by Ray Train."""

    def __init__(self, checkpoint: Checkpoint | None, rank: int, world: int) -> None:
        self._checkpoint, self.rank, self.world = checkpoint, rank, world

    def last(self) -> TrainState:
        """Where an earlier attempt stopped, the same on every rank; each must call."""
        if self._checkpoint is None:
            return _last_state()
        return sharding.from_first(self._checkpoint.load, self.world) or TrainState()

    def save(self, facts: dict[str, Any], state: TrainState) -> None:
        """Keep rank 0's state, and report; each rank must call.

        Raises:
            StoreError: the store refuses; on every rank, since one that gave up alone would be waited for.
        """
        if self._checkpoint is not None:
            with sharding.failing_together(self.world):
                if self.rank == 0:
                    self._checkpoint.save(state)
        if self._checkpoint is not None or self.rank > 0:
            ray.train.report(facts)
            return
        within = f"-{state.step:08d}" if state.step else ""
        with TemporaryDirectory() as folder:
            state.save(folder)
            ray.train.report(
                facts,
                checkpoint=ray.train.Checkpoint.from_directory(folder),
                checkpoint_dir_name=f"{CHECKPOINT}-{facts['epoch']:06d}{within}",
            )


class _Watch:
    """Ends a worker that hangs, and saves the state when the node of a worker is about to be taken away."""

    def __init__(
        self, guard: HangGuard, name: str, kept: _Kept, mailbox: Mailbox, *, pausable: bool = True
    ) -> None:
        self._guard, self._name, self._kept, self._mailbox = guard, name, kept, mailbox
        self._pausable = pausable
        self._steps, self._looked, self._saved = 0, time.monotonic(), False

    def step(self) -> bool:
        """Whether a notice came that nothing was saved for yet."""
        self._guard.step()
        self._steps += 1
        alone = self._kept.world == 1
        due = time.monotonic() - self._looked >= LOOK_S if alone else self._steps % LOOK_STEPS == 0
        if not due or self._saved or not self._pausable:
            return False
        self._looked = time.monotonic()
        return _v2.get_preemption_info() is not None

    def alive(self) -> None:
        """Something other than a step went on."""
        self._guard.step()

    def save(self, state: TrainState) -> None:
        """A checkpoint within the epoch."""
        self._saved = True
        self._kept.save({"epoch": state.epoch, "step": state.step}, state)
        if self._kept.rank > 0:
            return
        send(
            self._mailbox,
            self._name,
            f"a node is about to be taken away: saved in epoch {state.epoch + 1} after step {state.step}",
        )


@contextmanager
def _watching(job: TrainJob, folder: Path, kept: _Kept, mailbox: Mailbox, streamed: bool) -> Iterator[_Watch]:
    """Whoever looks on for the length of the block."""
    least, most = job.entry.resources.span
    limit_s = job.entry.resources.step_timeout_s or STEP_TIMEOUT_S
    guard = HangGuard(limit_s, trace_file(folder, kept.rank))
    try:
        # Each worker streams a share of its own: of half an epoch as many must go on as began it.
        yield _Watch(guard, job.name, kept, mailbox, pausable=not streamed or least == most)
    finally:
        guard.close()


def _tell_hang(name: str, folder: Path, mailbox: Mailbox) -> None:
    """Say why the attempt before was ended."""
    place = hung_at(folder)
    if place is not None:
        send(mailbox, name, f"the last attempt hung at {place} and was ended")
    forget_hang(folder)


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
    begins = f"goes on after epoch {state.epoch}" if state.epoch or state.step else "starts"
    begins += f", step {state.step} of the next" if state.step else ""
    several = f" for {job.entry.yields} models" if job.entry.yields > 1 else ""
    send(mailbox, job.name, f"{begins}: {training.epochs} epochs of {rows} rows{several}, {where}")
    if training.precision == "bf16" and device.type == "cpu" and not has_bf16_kernels():
        text = (
            "this CPU has no bfloat16 kernels, training in it takes many times as long: "
            f"--set models.{job.name}.training.precision=fp32"
        )
        send(mailbox, job.name, text)
