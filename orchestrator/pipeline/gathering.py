"""What `orchestrator choose` chooses among: models and variants, with all that is measured of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.config.base import fingerprint
from orchestrator.config.ensemble import Member, Parallel
from orchestrator.config.goal import Costs
from orchestrator.config.measure import LatencySettings
from orchestrator.ensemble.call_cost import CallTime
from orchestrator.ensemble.candidates import Available
from orchestrator.ensemble.planner import Students
from orchestrator.ensemble.tree import predict
from orchestrator.measure.artifacts import measure_artifacts, share_of_call
from orchestrator.measure.latency import METHOD, measure, summarize
from orchestrator.measure.machine import machine, machine_fingerprint
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.evaluation import cost_of
from orchestrator.pipeline.searching import Found
from orchestrator.pipeline.students import students_of

MOST_MODELS = 24
"""Models and variants of the run file all count; points of the search's front fill up to so many."""


@dataclass(frozen=True)
class Gathered:
    """The models, and what could not be taken."""

    pool: tuple[Available, ...]
    students: Students
    """Models that were distilled from several."""
    baseline: str
    """Digest of the artifact that latencies were measured beside."""
    notes: tuple[str, ...]


def gather(
    run: Run, models: Mapping[str, str], variants: Mapping[str, Member], found: Found | None, costs: Costs
) -> Gathered:
    """Every model, variant and point of the front that runs on this machine.

    Latencies that are in the store are not measured again.

    Args:
        run: whose.
        models: name -> digest.
        variants: of the run file.
        found: what its search found.
        costs: the batches and threads to measure at.
    """
    members = [Member(name=name, digest=digest) for name, digest in models.items()]
    members += variants.values()
    rows = [row for row in (found.chosen, *found.front, *found.arms) if row and row.ok] if found else []
    members += [Member(name=row.name, digest=row.digest, execution=row.execution) for row in rows]
    distinct = {(member.digest, member.execution): member for member in reversed(members)}
    members = [member for member in members if distinct[member.digest, member.execution] is member]
    members = members[: max(MOST_MODELS, len(models) + len(variants))]
    baseline = found.parent.digest if found else next(iter(models.values()))
    times, notes = _times(run, members, baseline, costs)
    families = _families(run, models, variants)
    pool = tuple(
        Available(
            member,
            times[member],
            run.store.artifact_bytes(member.digest),
            float(cost_of(run, member.digest).macs),
            families.get(member.digest, run.config.search.parent if run.config.search else ""),
            bool(run.store.manifest(member.digest).plan),
        )
        for member in members
        if member in times
    )
    return Gathered(pool, students_of(run.store, [member.digest for member in members]), baseline, notes)


def walk_ms(run: Run, costs: Costs) -> float:
    """What the walk over a tree takes for each member that is asked: its time with members that take none.

    Measured once a machine and batch, then looked up.
    """
    batch, outputs = max(costs.batches), run.dataset.signature.outputs
    facts = {
        "kind": "walk",
        "method": METHOD,
        "batch": batch,
        "outputs": outputs,
        "fingerprint": machine_fingerprint(machine()),
    }

    def compute() -> dict[str, float]:
        members = [Member(name=name, digest=fingerprint(name)) for name in ("one", "two")]
        said = np.zeros((batch, outputs), np.float32)
        calls = {member: lambda rows: said[: len(rows)] for member in members}
        tree, rows = Parallel(members=tuple(members)), np.arange(batch)
        settings = LatencySettings(batch=batch)
        task = run.dataset.signature.task
        found = measure({"walk": lambda: predict(tree, calls, rows, task)}, settings, baseline="walk")["walk"]
        return {"ms": summarize(found, settings, "eager").median_ms / len(members)}

    # Not a record, which goes with its artifact: there is none here.
    return float(run.store.stage_value(fingerprint(facts), compute)["ms"])


def _times(
    run: Run, members: Sequence[Member], baseline: str, costs: Costs
) -> tuple[dict[Member, dict[int, CallTime]], tuple[str, ...]]:
    """Times of calls by batch, of those members that run here; and why the others do not."""
    known: dict[Member, dict[int, CallTime]] = {member: {} for member in members}
    notes: dict[str, None] = {}
    for batch in costs.batches:
        settings = run.config.latency.model_copy(update={"batch": batch, "threads": costs.threads})
        subjects = [(member.digest, member.execution) for member in members]
        records = measure_artifacts(run.store, baseline, subjects, settings, allowed=run.allowed)
        for member, subject, record in zip(members, subjects, records, strict=True):
            if "error" in record:
                notes[f"{member.name} is left out: {record['error']}"] = None
                continue
            whole = float(record["median_ms"])
            one = whole * share_of_call(run.store, subject, settings, allowed=run.allowed)
            known[member][batch] = CallTime({1: one, batch: whole}, float(record["tail"]))
    times = {member: found for member, found in known.items() if len(found) == len(costs.batches)}
    return times, tuple(notes)


def _families(run: Run, models: Mapping[str, str], variants: Mapping[str, Member]) -> dict[str, str]:
    """Digest -> the model that it is, or that it is a variant of."""
    names = {name: name for name in models}
    for name, entry in run.config.variants.items():
        names[name] = names[entry.parent]
    return {variants[name].digest if name in variants else models[name]: names[name] for name in names}
