"""The training stage: teacher and members together on the cluster, what is finished taken from the store."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from orchestrator.config.data import DataSettings
from orchestrator.config.run import ModelEntry
from orchestrator.data.dataset import Dataset
from orchestrator.errors import ConfigError, DataError
from orchestrator.pipeline.context import Run, check_fits, one_model
from orchestrator.pipeline.watching import TrainingWatch
from orchestrator.store import signing
from orchestrator.training.ray_train import OnDone, TrainJob, train_models


def train(run: Run, *, fresh: bool = False, only: Collection[str] | None = None) -> dict[str, str]:
    """Train every model of the run file that is not finished; name each `<run>/<model>` in the store.

    Args:
        run: whose models.
        fresh: forget settings and checkpoints kept under their names.
        only: names of the models to train, if not all; their teachers must be among them.

    Returns:
        Model name -> artifact digest, in the order of the run file.

    Raises:
        ResourceError: the cluster can never run one of the models.
        TrainingError: a model failed; the others are kept.
        ModelError: a factory, loss or metric of the user's cannot be imported; nothing was started.
        InputError: a `ref` names an ensemble.
        ConfigError: a model was trained in this run with other settings (`fresh` forgets them), or one that
            is not trained here was made for other data.
    """
    entries = {name: entry for name, entry in run.config.models.items() if only is None or name in only}
    imported = {name: one_model(run.store, entry.ref) for name, entry in entries.items() if entry.ref}
    for name, digest in imported.items():
        check_fits(name, run.store.manifest(digest).signature, run.dataset.signature)
    jobs = [job_of(run, name, entry, imported) for name, entry in entries.items() if not entry.ref]
    done = {} if fresh else finished(run, jobs)
    for name, digest in done.items():
        run.progress("train", f"{name}: finished before")
        run.name_artifact(name, digest)
    if len(done) < len(jobs):
        # Named at once: what fails or takes long later does not leave it to be removed as old.
        done = trained(run, jobs, fresh=fresh, on_done=run.name_artifact)
    digests = {name: (imported | done)[name] for name in entries}
    for name, digest in digests.items():
        run.name_artifact(name, digest)
    return digests


def trained(
    run: Run,
    jobs: Sequence[TrainJob],
    *,
    fresh: bool = False,
    on_done: OnDone = lambda name, digest: None,  # noqa: ARG005
) -> dict[str, str]:
    """Train on the cluster what the store lacks, and tell of it; name -> digest.

    Args:
        run: whose.
        jobs: all of them, finished or not.
        fresh: forget settings and checkpoints kept under their names.
        on_done: called with the name and digest of each as soon as it is there.

    Raises:
        ModelError: a factory, loss or metric of the user's cannot be imported; nothing was started.
        ConfigError: the store asks for signatures, and there is no key to sign with.
    """
    for job in jobs:
        job.check_imports()  # before Ray starts, instead of failing in a worker
    _check_key(run)
    run.cluster()
    watch = TrainingWatch(run, {job.name: job.entry.training.epochs for job in jobs})
    return train_models(jobs, storage=run.folder / "training", on_event=watch, on_done=on_done, fresh=fresh)


def curves(run: Run, models: dict[str, str]) -> dict[str, list[dict[str, float]]]:
    """Training curves by model, from the artifacts' records."""
    found = {}
    for name, digest in models.items():
        record = next((kept for kept in run.store.records(digest) if kept.get("kind") == "training"), None)
        if record is not None:
            found[name] = [dict(epoch) for epoch in record["epochs"]]
    return found


def job_of(run: Run, name: str, entry: ModelEntry, imported: dict[str, str]) -> TrainJob:
    """The training of one model as plain data; `imported` are digests of teachers that are there already."""
    transfer = entry.training.transfer
    return TrainJob(
        name=name,
        entry=entry,
        data_folder=str(run.dataset.folder),
        store=run.store.location,
        seed=run.config.seed_of(entry),
        metric=run.config.metric,
        allowed=tuple(sorted(run.allowed)),
        teacher_digest=imported.get(entry.teacher or ""),
        transfer_folder=None if transfer is None else str(_transfer_set(run, transfer).folder),
    )


def _transfer_set(run: Run, settings: DataSettings) -> Dataset:
    """The rows of a transfer set; its labels decide how they are cut, where they can."""
    try:
        return run.alike(settings)
    except DataError:  # perhaps of labels, which are missing, or too few of a class
        return run.alike(settings, labelled=False)


def _check_key(run: Run) -> None:
    """A store that loads only what is signed takes no model from who cannot sign it."""
    trusted = run.store.signed_by
    private = signing.own_key() if trusted else None
    if trusted and (private is None or signing.public_of(private) not in trusted):
        raise ConfigError(
            "the run could not load what it trains: the store asks for signatures, and "
            + ("no key is set" if private is None else "the key that is set is not among its own"),
            signing.KEY_VARIABLE,
            "set it to the file of a key that the store trusts, on every node",
        )


def finished(run: Run, jobs: list[TrainJob]) -> dict[str, str]:
    """Jobs whose artifact is in the store; one with a teacher only once its teacher is known."""
    done: dict[str, str] = {}
    waiting = list(jobs)
    while waiting:
        later = []
        for job in waiting:
            teacher = job.entry.teacher
            if teacher is not None and job.teacher_digest is None:
                if teacher not in done:
                    later.append(job)
                    continue
                job = replace(job, teacher_digest=done[teacher])
            digest = run.store.stage_result(job.key())
            if digest is not None:
                done[job.name] = digest
        if len(later) == len(waiting):
            break
        waiting = later
    return done
