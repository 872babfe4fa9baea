"""A chain's later models: trained one after the other on rows that hold what those before them said."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.config.base import fingerprint
from orchestrator.config.data import PartName
from orchestrator.config.ensemble import Chain, Later, Member
from orchestrator.config.groups import name_of
from orchestrator.config.run import ModelEntry
from orchestrator.data.beside import with_inputs
from orchestrator.data.dataset import Array, Dataset
from orchestrator.data.load import default_cache
from orchestrator.ensemble.node import Output
from orchestrator.ensemble.sight import beside, told
from orchestrator.errors import EnsembleError
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.folding import done_or_trained, held_out, out_of_fold_outputs, without_folds
from orchestrator.pipeline.training import job_of
from orchestrator.training.job import TrainJob


def train_later(run: Run, name: str, chain: Chain, *, fresh: bool = False) -> Chain:
    """The chain with its later models, which are named `<run>/<name>-1` and so on in the store.

    A train row of theirs holds what models said that were trained without the row's fold: never an answer to
    a row that its author was trained on. Other rows hold what the chain's own members say. What is finished
    is taken from the store, so a killed run goes on.

    Args:
        run: whose.
        name: of the ensemble.
        chain: its members are models of the run, bound.
        fresh: forget settings and checkpoints kept under the trainings' names.

    Raises:
        TrainingError: a model cannot be trained; those before it are kept.
        EnsembleError: the run's rows are no images and no rows of features.
    """
    signature = run.dataset.signature
    if signature.input_dtype not in ("uint8", "float32"):
        raise EnsembleError(
            "a chain's later models see images or rows of features", signature.input_dtype, "use a stack"
        )
    members = [member for member in chain.members if isinstance(member, Member)]
    known, _ = out_of_fold_outputs(run, chain, fresh=fresh)
    said = [known[member] for member in members]
    for number, later in enumerate(chain.later, 1):
        rows = _rows(run, members, said)
        job = _job(run, name_of(name, number), later, rows, members)
        digest = done_or_trained(run, [job], fresh=fresh)[job.name]
        if number < len(chain.later):
            jobs = without_folds(job, chain.folds)
            done = done_or_trained(run, jobs, fresh=fresh)
            said.append(held_out(run, [done[one.name] for one in jobs], rows))
        sees = tuple(Member(name=one.name, digest=one.digest, sees=one.sees) for one in members)
        members.append(Member(name=job.name, digest=digest, sees=sees))
        run.name_artifact(job.name, digest)
        run.progress("ensemble", f"{name}: {job.name} sees the inputs and {', '.join(o.name for o in sees)}")
    return chain.model_copy(update={"members": tuple(members)})


def _rows(run: Run, members: Sequence[Member], said: Sequence[Output]) -> Dataset:
    """What the next model is trained on: train rows with what was `said` out of fold, validation rows with
    what the members say."""
    task, train = run.dataset.signature.task, run.dataset.part("train")
    shown = told(said, task)
    key = fingerprint(
        {
            "rows": "beside outputs",
            "data": run.dataset.digest,
            "members": [member.digest for member in members],
            "said": hashlib.sha256(shown.tobytes()).hexdigest(),
        }
    )
    validation = run.dataset.part("validation")
    own = told([run.outputs(member, "validation") for member in members], task)
    inputs: dict[PartName, Array] = {
        "train": beside(train.inputs, shown),
        "validation": beside(validation.inputs, own),
    }
    return with_inputs(run.dataset, inputs, key=key, cache=default_cache())


def _job(run: Run, label: str, later: Later, rows: Dataset, members: Sequence[Member]) -> TrainJob:
    entry = ModelEntry(model=later.model, training=later.training, resources=later.resources)
    sees = tuple(member.digest for member in members)
    return replace(job_of(run, label, entry, {}), data_folder=str(rows.folder), sees=sees)
