"""Out-of-fold outputs: what models say of train rows that they were not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.ensemble import Member, Stacking
from orchestrator.config.groups import fold_name
from orchestrator.data.split import fold_of, rows_digest
from orchestrator.ensemble.node import Output
from orchestrator.errors import EnsembleError
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.training import finished, job_of, trained
from orchestrator.training.ray_train import TrainJob


def out_of_fold_outputs(
    run: Run, stack: Stacking, *, fresh: bool = False
) -> tuple[dict[Member, Output], npt.NDArray[Any]]:
    """Outputs [N, K] of every member on the train rows, and their targets.

    Each member is trained once more for each fold, without its rows; what is finished comes from the store.

    Args:
        run: whose.
        stack: its members are models of the run, bound.
        fresh: forget settings and checkpoints kept under the trainings' names.

    Raises:
        TrainingError: a model cannot be trained.
        EnsembleError: a model was trained on rows that it is to be asked about.
    """
    assert stack.folds is not None
    members = [member for member in stack.members if isinstance(member, Member)]
    jobs = {member: _jobs(run, member.name, stack.folds) for member in dict.fromkeys(members)}
    every = [job for found in jobs.values() for job in found]
    done = {} if fresh else finished(run, every)
    if len(done) < len(every):
        done = trained(run, every, fresh=fresh)
    outputs = {member: held_out(run, [done[job.name] for job in found]) for member, found in jobs.items()}
    return outputs, run.dataset.part("train").targets


def held_out(run: Run, digests: Sequence[str]) -> Output:
    """Outputs [N, K] on the train rows, each fold's by the artifact that was trained without it.

    Args:
        run: whose rows.
        digests: the artifact of each fold.

    Raises:
        EnsembleError: an artifact was trained on other rows than all those of the other folds.
    """
    part = run.dataset.part("train")
    fold, found = fold_of(len(part), len(digests)), []
    for number, digest in enumerate(digests):
        manifest = run.store.manifest(digest)
        allowed = rows_digest(part.ids[fold != number])
        if manifest.data != run.dataset.digest or manifest.what.get("rows") != allowed:
            raise EnsembleError(
                f"the model of fold {number + 1} was not trained on the rows of the other folds alone",
                digest[:12],
                "train it anew with --fresh",
            )
        found.append(run.outputs(Member(name=digest[:12], digest=digest), "train"))
    return np.stack(found)[fold, np.arange(len(part))]


def _jobs(run: Run, name: str, folds: int) -> list[TrainJob]:
    entry = run.config.models[name]
    return [
        replace(job_of(run, fold_name(name, number, folds), entry, {}), fold=(number, folds))
        for number in range(folds)
    ]
