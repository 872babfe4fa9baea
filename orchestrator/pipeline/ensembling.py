"""One ensemble: names become artifacts, weights and thresholds are fitted on the validation part.

Calibration rows are read where a cascade promises something, and for prediction sets and intervals, whose
width is fitted on them; nothing else is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from orchestrator.config.data import PartName
from orchestrator.config.ensemble import (
    Boosting,
    Cascade,
    Chain,
    Combined,
    Ensemble,
    Member,
    Node,
    Parallel,
    Spec,
    Stacking,
    WeightedMix,
    walk_nodes,
)
from orchestrator.ensemble.explain import label
from orchestrator.ensemble.fit import bind, fit
from orchestrator.ensemble.guarantee import least_rows
from orchestrator.ensemble.node import Output
from orchestrator.ensemble.thresholds import NONE_LEAVES
from orchestrator.ensemble.tree import distinct
from orchestrator.pipeline.boosting import train_stages
from orchestrator.pipeline.chaining import train_later
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.elsewhere import out_of_scope
from orchestrator.pipeline.evaluation import cost_of
from orchestrator.pipeline.folding import out_of_fold_outputs


def fit_ensemble(run: Run, name: str, known: Mapping[str, Node], *, fresh: bool = False) -> tuple[Spec, str]:
    """Fit one ensemble of the run file and name its spec `<run>/<ensemble>` in the store.

    What a boosting, a chain or a stack with folds lacks is trained first.

    Args:
        run: whose.
        name: of the ensemble.
        known: what its members' names, or that of a boosting's base, stand for.
        fresh: forget the settings of what is trained.

    Returns:
        The spec and its digest.

    Raises:
        EnsembleError: the ensemble cannot be fitted for this task.
        TrainingError: what it lacks cannot be trained.
    """
    tree, folded = run.config.ensembles[name], None
    if isinstance(tree, Boosting):
        tree = train_stages(run, name, tree, known, fresh=fresh)
    bound = bind(tree, known)
    if isinstance(bound, Chain):
        bound = train_later(run, name, bound, fresh=fresh)
    if isinstance(bound, Stacking) and bound.folds is not None:
        folded = out_of_fold_outputs(run, bound, fresh=fresh)
    promises = any(map(_promises, walk_nodes(bound)))
    fitted = fit(
        bound,
        *_rows(run, bound, "validation"),
        run.config.metric,
        run.dataset.signature.task,
        allowed=run.allowed,
        cost=lambda member: float(cost_of(run, member.digest).macs),
        calibration=_rows(run, bound, "calibration") if promises else None,
        folded=folded,
        outside=_out_of_scope(run, bound),
    )
    spec = Spec(
        name=name,
        tree=cast(Ensemble, fitted),
        signature=run.dataset.signature,
        batch=run.config.latency.batch,
        threads=run.config.latency.threads,
    )
    digest = run.store.put_spec(spec)
    run.name_artifact(name, digest)
    run.progress("ensemble", f"{name} ({tree.kind}): {describe(spec.tree)}")
    return spec, digest


def _promises(node: Node) -> bool:
    """Whether it must look at calibration rows."""
    if isinstance(node, Cascade) and node.guarantee is not None:
        return True
    return isinstance(node, Combined) and (node.prediction_sets is not None or node.intervals is not None)


def _out_of_scope(run: Run, tree: Node) -> dict[Member, Output] | None:
    """What members say of validation rows from elsewhere, where a reject asks for their recall."""
    if not isinstance(tree, Combined) or tree.reject is None or tree.reject.recall is None:
        return None
    return out_of_scope(run, distinct(tree))


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
    if isinstance(tree, Chain):
        return f"{label(tree.members[-1])}, which sees " + ", ".join(map(label, tree.members[:-1]))
    if isinstance(tree, Stacking):
        return "stack of " + ", ".join(map(label, tree.members))
    if isinstance(tree, Member):
        return label(tree)
    how = f"{tree.rule} of " if isinstance(tree, Parallel) else f"by {tree.method}: "
    if isinstance(tree, WeightedMix) and tree.rule != "mean":
        how = f"{tree.rule} {how}"
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
