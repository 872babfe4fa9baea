"""Boosting's stages: trained one after the other, each on what the sum of those before it got wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.config.data import PartName
from orchestrator.config.ensemble import Boosting, Member, Node
from orchestrator.config.groups import stage_names
from orchestrator.ensemble.boost import DIGITS, Progress, next_factor
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.folding import done_or_trained
from orchestrator.pipeline.training import job_of

PARTS: tuple[PartName, PartName] = ("train", "validation")


def train_stages(
    run: Run, name: str, node: Boosting, known: Mapping[str, Node], *, fresh: bool = False
) -> Boosting:
    """The ensemble with its stages, which are named `<run>/<name>-2` and so on in the store.

    A stage that helps no more ends it. What is finished is taken from the store, so a killed run goes on.

    Args:
        run: whose.
        name: of the ensemble.
        node: as the run file describes it.
        known: what names stand for; the base, a model of the run, is the first stage.
        fresh: forget settings and checkpoints kept under the stages' names.

    Raises:
        TrainingError: a stage failed; those before it are kept.
    """
    base = known[node.base]
    assert isinstance(base, Member)  # checked by RunConfig
    stages, factors = [base], [1.0]
    data, task = run.dataset, run.dataset.signature.task
    so_far = {
        part: Progress.of(run.outputs(stages[0], part), data.part(part).targets, task) for part in PARTS
    }
    losses = [so_far["train"].loss]
    for label in stage_names(name, node.base, node.rounds)[1:]:
        before = tuple((stage.digest, factor) for stage, factor in zip(stages, factors, strict=True))
        job = replace(job_of(run, label, run.config.models[node.base], {}), before=before)
        digest = done_or_trained(run, [job], fresh=fresh)[job.name]
        stage = Member(name=label, digest=digest)
        outputs = {part: run.outputs(stage, part) for part in PARTS}
        factor = next_factor(outputs, so_far, node.shrinkage)
        if factor == 0:
            run.progress("ensemble", f"{name}: ends before {label}, which makes the loss no smaller")
            break
        so_far = {part: so_far[part].after(outputs[part], factor) for part in PARTS}
        stages.append(stage)
        factors.append(factor)
        losses.append(so_far["train"].loss)
        run.name_artifact(label, stage.digest)
        told = f"train loss {losses[-2]:.4f} -> {losses[-1]:.4f}, validation {so_far['validation'].loss:.4f}"
        run.progress("ensemble", f"{name}: {label} times {factor:g}: {told}")
    return node.model_copy(
        update={
            "members": tuple(stages),
            "factors": tuple(factors),
            "train_losses": tuple(round(loss, DIGITS) for loss in losses),
            "quorum": None if node.quorum is None else min(node.quorum, len(stages)),
        }
    )
