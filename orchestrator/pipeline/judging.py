"""What the run file's own variants are beside their parents: the promise on contract rows, gate and audit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from orchestrator.compression.audit import audit
from orchestrator.compression.gate import gate
from orchestrator.config.ensemble import Member
from orchestrator.config.measure import Metric
from orchestrator.config.search import Promise
from orchestrator.config.steps import Distill
from orchestrator.config.variant import VariantEntry
from orchestrator.errors import DataError, ModelError, OrchestratorError
from orchestrator.measure.artifacts import Subject, measure_artifacts
from orchestrator.measure.latency import Latency
from orchestrator.measure.promise import Verdict, non_inferior
from orchestrator.pipeline.context import Run
from orchestrator.progress import Progress
from orchestrator.search.ledger import Ledger
from orchestrator.store.store import Store

Figures = dict[str, Any]
Ask = Callable[[Promise], Verdict]
"""The contract part's answer about one variant."""


class Asked(NamedTuple):
    """A variant that the contract part is asked about."""

    subject: Subject
    promise: Promise
    ask: Ask


def judged(run: Run, members: Mapping[str, Member]) -> dict[str, Figures]:
    """By variant of the run file `parent`, `verdict`, `gate` and `audit`; each is None where it is not known.

    A student of an ensemble has neither verdict nor gate: what it stands for is not its parent. Nothing is
    refused here: who wrote a variant down asked for it.

    Args:
        run: whose.
        members: models and variants by name.
    """
    found: dict[str, Figures] = {}
    asked: dict[str, Asked] = {}
    for name, entry in run.config.variants.items():
        own, parent = members[name], members[entry.parent]
        found[name] = {"parent": entry.parent, "verdict": None, "gate": None}
        found[name]["audit"] = audit_of(run, own.digest, missing=True)
        if _learned_from_ensemble(entry) or own.digest == parent.digest:
            continue
        found[name]["gate"] = _gate(run, own, parent, found[name]["audit"])
        if "contract" in run.dataset.parts and len(run.dataset.part("contract")):
            default = run.config.search.promise if run.config.search else Promise()
            subject = (own.digest, own.execution)
            asked[name] = Asked(subject, entry.promise or default, _ask(run, own, parent))
    study = {"variants": run.config.name, "data": run.dataset.digest, "metric": run.config.metric.plain()}
    for name, verdict in looks(run.store, study, asked).items():
        found[name]["verdict"] = verdict.plain()
    return found


def looks(store: Store, study: dict[str, Any], asked: Mapping[str, Asked]) -> dict[str, Verdict]:
    """The contract part's answers about variants of which each is told, whatever it says of the others.

    So the chance of a mistake is shared by all that the study ever looked at (Bonferroni): another variant
    makes the bounds of those before it wider. Looks are kept with what they said at first.

    Args:
        store: where looks are kept.
        study: plain settings; what is looked at under the same ones counts together.
        asked: by name of the variant.

    Returns:
        Verdicts by name; one that cannot be had, for want of labels or since the metric fails, is left out.
    """
    if not asked:
        return {}
    ledger = Ledger(store, study)
    count = len({*ledger.looks(), *(one.subject for one in asked.values())})
    found = {}
    for name, (subject, promise, ask) in asked.items():
        confidence = 1 - (1 - promise.confidence) / count
        try:
            found[name] = ask(promise.model_copy(update={"confidence": confidence}))
        except (DataError, ModelError) as error:
            Progress()("evaluate", f"{name} has no verdict: {error}")
            continue
        ledger.look(*subject, found[name])
    return found


def look(store: Store, study: dict[str, Any], asked: Asked) -> Verdict | None:
    """The contract part's answer about one variant of a series whose end nobody knows.

    The j-th one may be wrong by 1 / (j (j + 1)) of the chance of a mistake. All of them together stay within
    that chance, however many follow, so an answer is for good: asked again, it is the stored one.

    Args:
        store: where looks are kept.
        study: plain settings; what is looked at under the same ones is one series.
        asked: the variant.

    Returns:
        None where it cannot be had, for want of labels or since the metric fails.
    """
    ledger = Ledger(store, study)
    told = ledger.looks()
    if asked.subject in told:
        return told[asked.subject]
    number = len(told) + 1
    confidence = 1 - (1 - asked.promise.confidence) / (number * (number + 1))
    try:
        verdict = asked.ask(asked.promise.model_copy(update={"confidence": confidence}))
    except (DataError, ModelError) as error:
        Progress()("evaluate", f"there is no verdict: {error}")
        return None
    ledger.look(*asked.subject, verdict)
    return verdict


def answer(
    metric: Metric,
    own: npt.NDArray[Any],
    parent: npt.NDArray[Any],
    targets: npt.NDArray[Any],
    allowed: frozenset[str],
) -> Ask:
    """Who answers about a variant with these outputs [N, K] on contract rows, and those of its parent."""
    return lambda promise: non_inferior(metric, own, parent, targets, promise, allowed=allowed)


def audit_of(run: Run, digest: str, *, missing: bool) -> dict[str, Any] | None:
    """Facts about an artifact from its record; a `missing` one is made now, None where that fails."""
    records = [record for record in run.store.records(digest) if record.get("kind") == "audit"]
    known = next((record for record in reversed(records) if "decided" in record), None)
    if known is None and missing:
        run.progress("audit", f"looking into {digest[:12]}")
        try:
            known = audit(run.store, digest, allowed=run.allowed)
        # Facts for reading: a run does not end for them.
        except (OrchestratorError, RuntimeError, ValueError):
            return None
        run.store.add_record(digest, {"kind": "audit", **known})
    known = known or (records[-1] if records else None)
    return None if known is None else {name: value for name, value in known.items() if name != "kind"}


def _learned_from_ensemble(entry: VariantEntry) -> bool:
    return any(isinstance(step, Distill) and step.ensemble is not None for step in entry.plan)


def _ask(run: Run, own: Member, parent: Member) -> Ask:
    targets = np.asarray(run.dataset.part("contract").targets)
    outputs = [run.outputs(member, "contract") for member in (own, parent)]
    return answer(run.config.metric, outputs[0], outputs[1], targets, run.allowed)


def _gate(run: Run, own: Member, parent: Member, facts: Mapping[str, Any] | None) -> Figures | None:
    """Whether it gains anything over its parent in eager fp32; None where that cannot be said here."""
    before = audit_of(run, parent.digest, missing=True)
    if facts is None or before is None:
        return None
    try:
        (record,) = measure_artifacts(
            run.store,
            parent.digest,
            [(own.digest, own.execution)],
            run.config.latency,
            allowed=run.allowed,
        )
    except OrchestratorError:  # the parent itself may have no eager form
        return None
    if "error" in record:
        return None
    latency = Latency(**{one.name: record[one.name] for one in fields(Latency)})
    found = gate(facts, before, {latency.batch: latency})
    return {"passes": found.passes, "reason": found.reason}
