"""Out-of-fold outputs: what models say of train rows that they were not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.ensemble import Chain, Member, Stacking
from orchestrator.config.groups import fold_name
from orchestrator.data.dataset import Dataset
from orchestrator.data.split import fold_of, rows_digest
from orchestrator.ensemble.node import Output
from orchestrator.errors import EnsembleError
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.training import finished, job_of, trained
from orchestrator.training.ray_train import TrainJob


def out_of_fold_outputs(
    run: Run, stack: Stacking | Chain, *, fresh: bool = False
) -> tuple[dict[Member, Output], npt.NDArray[Any]]:
    """Outputs [N, K] of every member on the train rows, and their targets.

    Each member is trained once more for each fold, without its rows; what is finished comes from the store.

    Args:
        run: whose.
        stack: its members are models of the run, bound; or a chain, before it is trained.
        fresh: forget settings and checkpoints kept under the trainings' names.

    Raises:
        TrainingError: a model cannot be trained.
        EnsembleError: a model was trained on rows that it is to be asked about.
    """
    assert stack.folds is not None
    members = [member for member in stack.members if isinstance(member, Member)]
    jobs = {member: _jobs(run, member.name, stack.folds) for member in dict.fromkeys(members)}
    done = done_or_trained(run, [job for found in jobs.values() for job in found], fresh=fresh)
    outputs = {member: held_out(run, [done[job.name] for job in found]) for member, found in jobs.items()}
    return outputs, run.dataset.part("train").targets


def done_or_trained(run: Run, jobs: list[TrainJob], *, fresh: bool) -> dict[str, str]:
    """Name -> digest; what the store lacks is trained."""
    done = {} if fresh else finished(run, jobs)
    return done if len(done) == len(jobs) else trained(run, jobs, fresh=fresh)


def without_folds(job: TrainJob, folds: int) -> list[TrainJob]:
    """The same training once without each fold."""
    return [
        replace(job, name=fold_name(job.name, number, folds), fold=(number, folds)) for number in range(folds)
    ]


def held_out(run: Run, digests: Sequence[str], dataset: Dataset | None = None) -> Output:
    """Outputs [N, K] on the train rows, each fold's by the artifact that was trained without it.

    Args:
        run: whose rows.
        digests: the artifact of each fold.
        dataset: the same rows as they were trained on; the run's when not given.

    Raises:
        EnsembleError: an artifact was trained on other rows than all those of the other folds.
    """
    dataset = dataset or run.dataset
    part = dataset.part("train")
    fold, found = fold_of(len(part), len(digests)), []
    for number, digest in enumerate(digests):
        manifest = run.store.manifest(digest)
        allowed = rows_digest(part.ids[fold != number])
        if manifest.data != dataset.digest or manifest.what.get("rows") != allowed:
            raise EnsembleError(
                f"the model of fold {number + 1} was not trained on the rows of the other folds alone",
                digest[:12],
                "train it anew with --fresh",
            )
        found.append(run.outputs_on(Member(name=digest[:12], digest=digest), "train", dataset))
    return np.stack(found)[fold, np.arange(len(part))]


def _jobs(run: Run, name: str, folds: int) -> list[TrainJob]:
    return without_folds(job_of(run, name, run.config.models[name], {}), folds)
