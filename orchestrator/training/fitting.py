"""From a training job to its artifact, in whatever process: rows, teacher's outputs, loop, result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from orchestrator.config.data import PartName
from orchestrator.config.groups import nth_seed
from orchestrator.config.signature import Signature
from orchestrator.config.training import Augment, Training
from orchestrator.data.dataset import Dataset, Part
from orchestrator.data.load import open_cached
from orchestrator.data.split import fold_of, rows_digest
from orchestrator.data.stream import Stream
from orchestrator.data.streaming import read
from orchestrator.errors import DataError, StoreLockedError, TrainingError
from orchestrator.measure.machine import machine
from orchestrator.models.build import build
from orchestrator.models.together import Together, weights_of_member
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store
from orchestrator.training.batches import Views
from orchestrator.training.checkpoint import Checkpoint, Stopped
from orchestrator.training.device import device_of
from orchestrator.training.job import TrainJob
from orchestrator.training.loop import train
from orchestrator.training.offset import Offset, StageCaches, of_stage
from orchestrator.training.state import EpochReport, TrainState
from orchestrator.training.streamed import Blocks, Streamed
from orchestrator.training.teacher import TeacherCache


def fit(job: TrainJob, store: Store, on_epoch: Callable[[EpochReport], None]) -> str:
    """Train one model in this process; its artifact is that of the same job under Ray Train with one worker.

    Each epoch is kept in the store until the training ends or is stopped: one whose process was killed goes
    on after its last epoch. Only the process that holds the job's stage may call this.

    Args:
        job: what to train; its `workers` do not count.
        store: of the job.
        on_epoch: called after every epoch, those of an earlier attempt included; what it raises stops the
            training.

    Returns:
        The artifact's digest.

    Raises:
        TrainingError: the loss is not finite, or the rows cannot be cut as asked.
    """
    entry, threads = job.entry, job.entry.resources.cpus
    dataset, checkpoint = open_cached(Path(job.data_folder)), Checkpoint(store, job.key())
    device = torch.device(device_of(entry.resources.gpus))
    rows, state = train_rows(job, dataset), checkpoint.load() or TrainState()
    said = None if state.finished else said_by_others(job, store, dataset, rows, device)
    signature = signature_of(job, dataset)
    reports = train(
        module_of(job, signature),
        rows,
        dataset.part("validation"),
        entry.training,
        signature=signature,
        metric=job.metric,
        seed=job.seed,
        sample_seed=job.sample_seed,
        threads=threads,
        device=device,
        streamed=streamed_rows(job, dataset, read_here),
        teacher=said,
        state=state,
        allowed=job.allowed,
    )
    try:
        for report in state.curve:
            on_epoch(report)
        for report in reports:
            checkpoint.save(state)
            on_epoch(report)
    except (Stopped, TrainingError):  # it would end so again
        checkpoint.forget()
        raise
    digest = store_results(job, store, dataset, state, 1, device)
    checkpoint.forget()
    return digest


def module_of(job: TrainJob, signature: Signature) -> nn.Module:
    """What is trained, fresh: the model, or all that are trained together, each from a seed of its own.

    So have a boosting's stages: a later one would else learn with the features that the first has used up.
    """
    if job.entry.together is None:
        assert job.entry.model is not None  # checked by TrainJob.settings
        return build(job.entry.model, signature, allowed=job.allowed, seed=job.seed + len(job.before))
    members = [
        build(model, signature, allowed=job.allowed, seed=nth_seed(job.seed, number))
        for number, model in enumerate(job.entry.together, 1)
    ]
    return Together(members, signature.task)


def train_rows(job: TrainJob, dataset: Dataset) -> Part:
    """The rows to learn from, without the job's fold; of a transfer set all labels are struck out."""
    if job.transfer_folder is None:
        part = dataset.part("train")
        if job.fold is None:
            return part
        kept = _outside(job.fold, part)
        return Part(part.inputs[kept], part.targets[kept], part.ids[kept])
    transfer = open_cached(Path(job.transfer_folder))
    takes, gives = (
        f"{of.input_dtype} of the shape {list(of.input_shape)}"
        for of in (dataset.signature, transfer.signature)
    )
    if takes != gives:
        raise DataError(f"the transfer set's rows must be {takes}", gives)
    part = transfer.part("train")
    return Part(part.inputs, unlabelled(len(part), dataset.signature), part.ids)


def _outside(fold: tuple[int, int], part: Part) -> NDArray[np.int64]:
    """Positions of the rows that are not of the fold."""
    number, folds = fold
    return np.flatnonzero(fold_of(len(part), folds) != number)


def streamed_rows(
    job: TrainJob, dataset: Dataset, reader: Callable[[Stream, Signature], Blocks]
) -> Streamed | None:
    """The batches to learn from where the train part is a stream.

    Raises:
        ConfigError: the job asks for what a stream cannot give.
    """
    if dataset.stream is None:
        return None
    return Streamed(dataset.stream, job.entry.training, job.seed, reader(dataset.stream, dataset.signature))


def read_here(stream: Stream, signature: Signature) -> Blocks:
    """Blocks of rows that this process reads when they are asked for."""
    return partial(read, stream, signature=signature)


def unlabelled(rows: int, signature: Signature) -> NDArray[Any]:
    """Targets that say of every row that none is known."""
    if signature.task == "classification":
        return np.full(rows, -1, dtype=np.int64)
    if signature.task == "multilabel":
        return np.full((rows, signature.outputs), -1, dtype=np.int8)
    return np.full((rows, signature.outputs), np.nan, dtype=np.float32)


def said_by_others(
    job: TrainJob, store: Store, dataset: Dataset, rows: Part, device: torch.device, *, fill: bool = True
) -> Views | Offset | None:
    """What a teacher, or the earlier stages of a boosting, say of the rows; None of a model by itself.

    Args:
        job: names them.
        store: keeps their outputs.
        dataset: of the job.
        rows: that it learns from.
        device: where outputs are computed.
        fill: compute those that are missing; else another process does, before they are read.
    """
    teacher, stages = teacher_cache(job, store, rows, device), stage_caches(job, store, dataset, device)
    caches = [] if teacher is None else [teacher]
    for cache in caches if stages is None else stages.caches():
        if fill:
            cache.fill(lambda cache=cache: teacher_of(job, store, cache.digest))  # type: ignore[misc]
    if stages is not None:
        return stages.offset()
    return None if teacher is None else teacher.outputs()


def teacher_cache(job: TrainJob, store: Store, rows: Part, device: torch.device) -> TeacherCache | None:
    """Where the teacher's outputs on the rows are, or are to be, in every view; None without a teacher."""
    digest = job.teacher_digest
    if digest is None:
        return None
    settings = job.settings()
    data = settings["transfer"] or settings["data"]
    training, threads = job.entry.training, job.entry.resources.cpus
    task = store.manifest(digest).signature.task
    return TeacherCache(store, digest, data, rows, task, training, job.seed, threads, str(device))


def stage_caches(job: TrainJob, store: Store, dataset: Dataset, device: torch.device) -> StageCaches | None:
    """Where the outputs of a boosting's earlier stages are, or are to be; None of a model by itself."""
    if not job.before:
        return None
    training, task = job.entry.training, dataset.signature.task
    plain = training.model_copy(update={"augment": Augment()})

    def kept(part: PartName, training: Training) -> list[tuple[TeacherCache, float]]:
        data = dataset.digest if part == "train" else f"{dataset.digest} {part}"
        place = (job.entry.resources.cpus, str(device))
        rows, exact = dataset.part(part), part != "train"
        return [
            (TeacherCache(store, digest, data, rows, task, training, job.seed, *place, exact), factor)
            for digest, factor in job.before
        ]

    return StageCaches(kept("train", training), kept("validation", plain))


def signature_of(job: TrainJob, dataset: Dataset) -> Signature:
    """Of the model that is trained."""
    return of_stage(dataset.signature) if job.before else dataset.signature


def teacher_of(job: TrainJob, store: Store, digest: str) -> nn.Module:
    """Any artifact in float, in eval mode.

    Raises:
        DataError: it is an int8 model.
    """
    module = rebuild(store, digest, allowed=job.allowed).module
    if isinstance(module, fx.GraphModule):
        raise DataError("an int8 model cannot teach", digest, "distil from the float model it was made from")
    return module


def store_results(
    job: TrainJob, store: Store, dataset: Dataset, state: TrainState, world: int, device: torch.device
) -> str:
    """Put all models of the training into the store, each with its curve; the digest of the job's own."""
    own = ""
    for sibling in job.siblings():
        digest = _store_result(sibling, store, dataset, state, world, device)
        if sibling.entry.number == job.entry.number:
            own = digest
        else:
            # A process that holds the stage trains the same; it needs nothing from here.
            with suppress(StoreLockedError):
                store.stage(sibling.key(), partial(str, digest), wait_s=0)
    return own


def _result(job: TrainJob, state: TrainState) -> tuple[Mapping[str, Tensor], int]:
    """The job's weights, and after how many epochs they were so."""
    entry = job.entry
    if entry.number is not None and entry.together is None:
        return state.snapshots[entry.number - 1], entry.number * entry.training.epochs // entry.yields
    best = state.best_epoch if entry.training.patience is not None else None
    epochs = len(state.curve) if best is None else best + 1
    if entry.number is None:
        return state.weights, epochs
    return weights_of_member(state.weights, entry.number), epochs


def _store_result(
    job: TrainJob, store: Store, dataset: Dataset, state: TrainState, world: int, device: torch.device
) -> str:
    assert job.entry.model is not None
    training, resources = job.entry.training, job.entry.resources
    what = {
        "training": training.plain(),
        "metric": job.metric.plain(),
        "threads": resources.cpus,
        "world": world,
        "strategy": resources.strategy if world > 1 else None,
        "precision": training.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "isa": machine()["isa"],
        "torch": torch.__version__,
        **job.place(),
    }
    if job.fold is not None:
        what["fold"] = list(job.fold)
        part = dataset.part("train")
        what["rows"] = rows_digest(part.ids[_outside(job.fold, part)])
    if job.sees:
        what["sees"] = list(job.sees)
    if job.before:
        what["before"] = [[digest, factor] for digest, factor in job.before]
        if training.sample is not None:
            what["sample_seed"] = job.sample_seed
    weights, epochs = _result(job, state)
    draft = Draft(
        model=job.entry.model,
        signature=signature_of(job, dataset),
        plan=(),
        decisions=(),
        parents=tuple(filter(None, (job.teacher_digest, *job.sees, *(digest for digest, _ in job.before)))),
        data=dataset.digest,
        seed=job.seed,
        what=what,
    )
    digest = store.put_artifact(draft, weights)
    record = {
        "kind": "training",
        "name": job.name,
        "kept_epoch": epochs - 1,
        "epochs": [report.plain() for report in state.curve],
    }
    store.add_record(digest, record)
    return digest
