"""The ensemble stage: names become artifacts, weights and thresholds are fitted on the validation part."""

from __future__ import annotations

from typing import cast

from orchestrator.config.ensemble import Cascade, Ensemble, Member, Node, Spec, WeightedMix, leaves
from orchestrator.config.run import FRONT_NAMES
from orchestrator.ensemble.explain import label
from orchestrator.ensemble.fit import bind, fit
from orchestrator.ensemble.tree import distinct
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.searching import Found


def fit_ensembles(run: Run, members: dict[str, Member], found: Found | None) -> dict[str, Spec]:
    """Fit every ensemble of the run file and name its spec `<run>/<ensemble>` in the store.

    Raises:
        EnsembleError: an ensemble cannot be fitted for this task.
    """
    known: dict[str, Node] = dict(members)
    if found is not None:
        known |= {name: found.member(name) for name in FRONT_NAMES}
        if found.chosen is None and any(
            "chosen" in {leaf.name for leaf in leaves(tree)} for tree in run.config.ensembles.values()
        ):
            run.progress("ensemble", f"'chosen' stands for {found.parent.name}: {found.reason}")
    validation = run.dataset.part("validation")
    specs = {}
    for name, tree in run.config.ensembles.items():
        bound = bind(tree, known)
        outputs = {member: run.outputs(member, "validation") for member in distinct(bound)}
        fitted = fit(
            bound,
            outputs,
            validation.targets,
            run.config.metric,
            run.dataset.signature.task,
            allowed=run.allowed,
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


def describe(tree: Ensemble) -> str:
    """One line about the members and what was fitted."""
    if isinstance(tree, WeightedMix):
        pairs = zip(tree.members, tree.weights or (), strict=True)
        return ", ".join(f"{weight:.3f} {label(member)}" for member, weight in pairs)
    if isinstance(tree, Cascade):
        steps = [
            f"{label(stage)} if sure of {t:.3f}"
            for stage, t in zip(tree.stages, tree.thresholds or (), strict=False)
        ]
        return ", else ".join([*steps, label(tree.stages[-1])])
    return ", ".join(label(member) for member in tree.members)
