"""Students: single models that learned from several, and how near each comes to its ensemble."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from orchestrator.config.base import fingerprint
from orchestrator.config.ensemble import Member, Spec, leaves
from orchestrator.config.steps import Distill
from orchestrator.ensemble.tree import Prediction
from orchestrator.measure.intervals import percentile_interval, resamples
from orchestrator.measure.metrics import larger_is_better, statistic
from orchestrator.measure.tasks import class_rules
from orchestrator.pipeline.context import Run
from orchestrator.store.store import Store

BOOTSTRAPS = 400
"""Resamples of a drop's interval."""
Figures = dict[str, Any]


def students_of(store: Store, digests: Iterable[str]) -> dict[str, frozenset[str]]:
    """Of these models those that learned from several: digest -> digests of the models that taught it."""
    found = {}
    for digest in digests:
        step = _lesson(store, digest)
        if step is None:
            continue
        if step.ensemble is not None:
            found[digest] = frozenset(leaf.digest for leaf in leaves(store.spec(step.ensemble).tree))
        elif step.others:
            found[digest] = frozenset(store.manifest(digest).parents)
    return found


def beside(
    run: Run, specs: Mapping[str, Spec], members: Mapping[str, Member], predictions: Mapping[str, Prediction]
) -> dict[str, dict[str, Figures]]:
    """By ensemble its students by name, with their `drop` against it and `agreement` with it on test rows.

    That is who learned from that very ensemble, or from its members mixed in the step's own way.

    Args:
        run: whose.
        specs: by name of the ensemble.
        members: models and variants by name.
        predictions: the ensembles', on the test part.
    """
    digests = {member.digest for member in members.values()}
    taught = students_of(run.store, digests)
    found: dict[str, dict[str, Figures]] = {}
    for name, spec in specs.items():
        key, own = fingerprint(spec.plain()), frozenset(leaf.digest for leaf in leaves(spec.tree))
        found[name] = {}
        for student, member in members.items():
            step = _lesson(run.store, member.digest)
            if step is not None and taught.get(member.digest) == own and step.ensemble in (None, key):
                found[name][student] = _compared(run, predictions[name], member)
    return found


def _lesson(store: Store, digest: str) -> Distill | None:
    plan = store.manifest(digest).plan
    return plan[-1] if plan and isinstance(plan[-1], Distill) else None


def _compared(run: Run, ensemble: Prediction, student: Member) -> Figures:
    """A drop with its 95 % interval, the paired bootstrap over rows; and the share of equal classes."""
    targets = run.dataset.part("test").targets
    said = run.outputs(student, "test")
    sign = 1 if larger_is_better(run.config.metric) else -1
    one, other = (
        statistic(run.config.metric, outputs, targets, allowed=run.allowed)
        for outputs in (ensemble.outputs, said)
    )
    rows = len(targets)
    drops = [sign * (one(drawn) - other(drawn)) for drawn in resamples(rows, run.config.seed, BOOTSTRAPS)]
    whole = np.ones(rows)
    agreement = None
    if run.dataset.signature.task != "regression":
        kind = class_rules(run.dataset.signature.task)
        agreement = float(kind.right(said, kind.decisions(ensemble.outputs)).mean())
    return {
        "drop": {"value": sign * (one(whole) - other(whole)), "ci": list(percentile_interval(drops))},
        "agreement": agreement,
    }
