"""The ensemble stage: names become artifacts, weights and thresholds are fitted on the validation part.

Calibration rows are read where a cascade promises something; nothing is fitted on them.
"""

from __future__ import annotations

from typing import cast

from orchestrator.config.data import PartName
from orchestrator.config.ensemble import (
    Boosting,
    Cascade,
    Ensemble,
    Member,
    Node,
    Parallel,
    Spec,
    Stacking,
    leaves,
    walk_nodes,
)
from orchestrator.config.run import FRONT_NAMES
from orchestrator.ensemble.explain import label
from orchestrator.ensemble.fit import bind, fit
from orchestrator.ensemble.guarantee import least_rows
from orchestrator.ensemble.node import Output
from orchestrator.ensemble.thresholds import NONE_LEAVES
from orchestrator.ensemble.tree import distinct
from orchestrator.pipeline.boosting import train_stages
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.evaluation import cost_of
from orchestrator.pipeline.folding import out_of_fold_outputs
from orchestrator.pipeline.searching import Found


def fit_ensembles(
    run: Run, members: dict[str, Member], found: Found | None, *, fresh: bool = False
) -> dict[str, Spec]:
    """Fit every ensemble of the run file and name its spec `<run>/<ensemble>` in the store.

    What a boosting or a stack with folds lacks is trained first; `fresh` forgets the settings of that.

    Raises:
        EnsembleError: an ensemble cannot be fitted for this task.
        TrainingError: a stage cannot be trained.
    """
    known: dict[str, Node] = dict(members)
    if found is not None:
        known |= {name: found.member(name) for name in FRONT_NAMES}
        if found.chosen is None and any(
            "chosen" in {leaf.name for leaf in leaves(tree)} for tree in run.config.ensembles.values()
        ):
            run.progress("ensemble", f"'chosen' stands for {found.parent.name}: {found.reason}")
    specs = {}
    for name, tree in run.config.ensembles.items():
        if isinstance(tree, Boosting):
            tree = train_stages(run, name, tree, members, fresh=fresh)
        bound = bind(tree, known)
        promises = any(isinstance(node, Cascade) and node.guarantee for node in walk_nodes(bound))
        folded = None
        if isinstance(bound, Stacking) and bound.folds is not None:
            folded = out_of_fold_outputs(run, bound, fresh=fresh)
        fitted = fit(
            bound,
            *_rows(run, bound, "validation"),
            run.config.metric,
            run.dataset.signature.task,
            allowed=run.allowed,
            cost=lambda member: float(cost_of(run, member.digest).macs),
            calibration=_rows(run, bound, "calibration") if promises else None,
            folded=folded,
        )
        known[name] = fitted
        specs[name] = Spec(
            name=name,
            tree=cast(Ensemble, fitted),
            signature=run.dataset.signature,
            batch=run.config.latency.batch,
            threads=run.config.latency.threads,
        )
        run.name_artifact(name, run.store.put_spec(specs[name]))
        run.progress("ensemble", f"{name} ({tree.kind}): {describe(specs[name].tree)}")
    return specs


def _rows(run: Run, tree: Node, part: PartName) -> tuple[dict[Member, Output], Output]:
    """Every member's outputs on a part, and its targets."""
    outputs = {member: run.outputs(member, part) for member in distinct(tree)}
    return outputs, run.dataset.part(part).targets


def describe(tree: Node) -> str:
    """One line about the members and what was fitted."""
    if isinstance(tree, Cascade):
        exits = zip(tree.stages, tree.thresholds or (), strict=False)
        early = [
            f"{label(stage)} if its {tree.criterion} is at least {threshold:.6g}"
            for stage, threshold in exits
            if threshold < NONE_LEAVES
        ]
        return ", else ".join([*early, label(tree.stages[-1])]) + promise(tree)
    if isinstance(tree, Boosting):
        stages = zip(tree.members, tree.factors or (), strict=True)
        return "sum of " + ", ".join(f"{factor:g} {label(stage)}" for stage, factor in stages)
    if isinstance(tree, Stacking):
        return "stack of " + ", ".join(map(label, tree.members))
    if isinstance(tree, Member):
        return label(tree)
    how = f"{tree.rule} of " if isinstance(tree, Parallel) else f"by {tree.method}: "
    if tree.weights is None:
        return how + ", ".join(map(label, tree.members))
    pairs = zip(tree.members, tree.weights, strict=True)
    return how + ", ".join(f"{weight:.3f} {label(member)}" for member, weight in pairs)


def promise(cascade: Cascade) -> str:
    """What a cascade's guarantee came to, after a semicolon; nothing if it has none."""
    asked, found = cascade.guarantee, cascade.certificate
    if asked is None or found is None:
        return ""
    loss = f"at most {asked.max_loss:g} lost by leaving early, at {asked.confidence:g} confidence"
    if found.granted:
        return f"; promised: {loss} ({found.lost} of {found.rows} calibration rows)"
    if found.rows < (least := least_rows(asked)):
        why = f"{found.rows} calibration rows are too few, at least {least} are needed"
    else:
        why = f"{found.lost} of {found.rows} calibration rows are lost by the most careful exit"
    return f"; no early exit, for this cannot be promised: {loss} ({why})"
