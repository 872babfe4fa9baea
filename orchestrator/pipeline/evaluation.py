"""The evaluation stage: test figures, latencies and costs of every model, variant and ensemble."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.base import fingerprint
from orchestrator.config.ensemble import Cascade, Combined, Member, Node, Spec
from orchestrator.ensemble.conformal import intervals, prediction_sets
from orchestrator.ensemble.reject import rejected
from orchestrator.ensemble.tree import Prediction, distinct, mean_cost, predict, replay
from orchestrator.errors import ExecutionError
from orchestrator.measure.artifacts import Bench, Subject, measure_artifacts
from orchestrator.measure.cost import Cost, count
from orchestrator.measure.intervals import wilson
from orchestrator.measure.latency import METHOD, compare
from orchestrator.measure.machine import machine, machine_fingerprint
from orchestrator.measure.quality import quality
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.elsewhere import noticed
from orchestrator.pipeline.explaining import ensemble_figures, examples, occlusions
from orchestrator.pipeline.judging import judged
from orchestrator.pipeline.recording import record_quality
from orchestrator.pipeline.searching import Found
from orchestrator.pipeline.students import beside
from orchestrator.runtime.rebuild import rebuild
from orchestrator.search.objectives import TrialRow

Figures = dict[str, Any]
"""One entry of the run summary."""


@dataclass(frozen=True)
class Evaluation:
    """Test figures, by name, in the summary's form (design: Run summary)."""

    models: dict[str, Figures]
    front: list[Figures]
    chosen: Figures | None
    ensembles: dict[str, Figures]
    exits: dict[str, list[float]]
    """Share of test rows that left each stage of a cascade."""
    examples: dict[str, list[Figures]]
    """By ensemble a few explained test rows."""


def evaluate(run: Run, members: dict[str, Member], found: Found | None, specs: dict[str, Spec]) -> Evaluation:
    """Figures of everything on the test part; a latency is measured once, then taken from its record.

    `members` are models and the run file's own variants by name; the first is the baseline without a search.
    """
    baseline = found.parent.digest if found else next(iter(members.values())).digest
    summary = {name: _model(run, member) for name, member in members.items()}
    for name, latency in _model_latencies(run, members, baseline).items():
        summary[name]["latency_ms"] = latency
    for name, beside_parent in judged(run, members).items():
        summary[name] |= beside_parent
    record_quality(
        run, [(member.digest, member.execution) for member in members.values()], run.config.latency
    )
    front, chosen = _front(run, found)
    predictions = {name: _test_prediction(run, spec) for name, spec in specs.items()}
    latencies = spec_latencies(run, specs, baseline)
    maps = occlusions(run, specs)
    ensembles = {
        name: _ensemble(run, spec, predictions[name])
        | {"latency_ms": latencies[name]}
        | ensemble_figures(run, spec, predictions[name])
        for name, spec in specs.items()
    }
    for name, students in beside(run, specs, members, predictions).items():
        ensembles[name]["students"] = students
    for name, found_ in noticed(run, members | {name: spec.tree for name, spec in specs.items()}).items():
        (ensembles[name]["uncertainty"] if name in specs else summary[name])["elsewhere"] = found_
    explained = {name: examples(run, spec, maps.get(name, {})) for name, spec in specs.items()}
    exits = {name: _exits(specs[name], found_) for name, found_ in predictions.items()}
    run.progress(
        "evaluate", f"{len(summary)} models, {len(front)} variants, {len(ensembles)} ensembles on test"
    )
    return Evaluation(
        summary,
        front,
        chosen,
        ensembles,
        exits={name: share for name, share in exits.items() if share},
        examples=explained,
    )


def _model(run: Run, member: Member) -> Figures:
    cost = cost_of(run, member.digest)
    return {
        "ref": f"{run.config.name}/{member.name}",
        "digest": member.digest,
        **_quality(run, run.outputs(member, "test")),
        "params": cost.params,
        "bytes": run.store.artifact_bytes(member.digest),
    }


def _front(run: Run, found: Found | None) -> tuple[list[Figures], Figures | None]:
    if found is None:
        return [], None
    front = [_point(run, row) for row in found.front]
    if found.chosen is None or found.verdict is None:
        return front, None
    return front, {**_point(run, found.chosen), "verdict": found.verdict.plain()}


def _point(run: Run, row: TrialRow) -> Figures:
    member = Member(name=row.name, digest=row.digest, execution=row.execution)
    return {
        "name": row.name,
        "digest": row.digest,
        "execution": row.execution,
        **_quality(run, run.outputs(member, "test")),
        "latency_ms": _latency(run, row),
        "speedup": {"value": row.speedup, "ci": list(row.speedup_ci)},
        "bytes": row.bytes,
    }


def _quality(run: Run, outputs: np.ndarray) -> Figures:
    targets = run.dataset.part("test").targets
    return quality(run.config.metric, outputs, targets, seed=run.config.seed, allowed=run.allowed).plain()


def _latency(run: Run, row: TrialRow) -> Figures:
    settings = run.config.search.latency if run.config.search else run.config.latency
    return {
        "batch": settings.batch,
        "threads": settings.threads,
        "execution": row.execution,
        "median": row.latency_ms,
        "ci": list(row.latency_ci),
        "p95": row.p95_ms,
    }


def _model_latencies(run: Run, members: Mapping[str, Member], baseline: str) -> dict[str, Figures]:
    subjects: list[Subject] = [(member.digest, member.execution) for member in members.values()]
    records = measure_artifacts(run.store, baseline, subjects, run.config.latency, allowed=run.allowed)
    for name, record in zip(members, records, strict=True):
        if "error" in record:
            raise ExecutionError(
                f"'{name}' cannot run on this machine", record["error"], "evaluate it elsewhere"
            )
    return {name: _shown(record) for name, record in zip(members, records, strict=True)}


def _shown(record: Mapping[str, Any]) -> Figures:
    """A latency record as the summary shows it."""
    return {
        "batch": record["batch"],
        "threads": record["threads"],
        "execution": record["execution"],
        "median": record["median_ms"],
        "ci": record["ci"],
        "p95": record.get("p95_ms"),
    }


def _ensemble(run: Run, spec: Spec, prediction: Prediction) -> Figures:
    members = distinct(spec.tree)
    macs = {member: float(cost_of(run, member.digest).macs) for member in members}
    digests = {member.digest for member in members}
    policy = getattr(spec.tree, "policy", None)
    return {
        "kind": spec.tree.kind,
        **({"policy": policy} if policy else {}),
        "members": {
            member.name: _quality(run, run.outputs(member, "test"))["metric"]["value"] for member in members
        },
        **_quality(run, prediction.outputs),
        "bytes": sum(run.store.artifact_bytes(digest) for digest in digests),
        "mean_cost": mean_cost(prediction, macs),
        **_promised(spec.tree, prediction, run.dataset.part("test").targets),
    }


def _promised(tree: Node, prediction: Prediction, targets: npt.NDArray[Any]) -> Figures:
    """What prediction sets and intervals promise and do on test rows; nothing where the tree has none."""
    found: Figures = {}
    if not isinstance(tree, Combined):
        return found
    if tree.prediction_sets is not None and prediction.probs is not None:
        sets = prediction_sets(tree.prediction_sets, prediction.probs)
        sizes = sets.sum(axis=1)
        covered = int(sets[np.arange(len(targets)), targets].sum())
        found["prediction_sets"] = {
            "method": tree.prediction_sets.method,
            "coverage": tree.prediction_sets.coverage,
            "covered": covered / len(targets),
            "covered_ci": list(wilson(covered, len(targets))),
            "mean_size": float(sizes.mean()),
            "empty": float((sizes == 0).mean()),
        }
    dropped = rejected(tree, prediction)
    if tree.reject is not None and dropped is not None:
        right = prediction.outputs.argmax(axis=1) == targets
        kept = int((~dropped).sum())
        found["reject"] = {
            "by": tree.reject.by,
            "threshold": tree.reject.threshold,
            "rejected": float(dropped.mean()),
            "accuracy_kept": float(right[~dropped].mean()) if kept else None,
            "accuracy_rejected": float(right[dropped].mean()) if kept < len(targets) else None,
        }
    if tree.intervals is not None:
        low, high = intervals(tree.intervals, prediction.outputs)
        truth = targets.reshape(low.shape)
        inside = ((low <= truth) & (truth <= high)).mean(axis=0)
        found["intervals"] = {
            "coverage": tree.intervals.coverage,
            "covered": inside.tolist(),
            "widths": (high - low).mean(axis=0).tolist(),
        }
    return found


def _test_prediction(run: Run, spec: Spec) -> Prediction:
    outputs = {member: run.outputs(member, "test") for member in distinct(spec.tree)}
    return replay(spec.tree, outputs, spec.signature.task)


def _exits(spec: Spec, prediction: Prediction) -> list[float]:
    if not isinstance(spec.tree, Cascade):
        return []
    stages = len(spec.tree.stages)
    counts = np.bincount(prediction.stages, minlength=stages)
    return [float(found) for found in counts / len(prediction.stages)]


def cost_of(run: Run, digest: str) -> Cost:
    """Operations and parameters of an artifact; kept as a record, since rebuilding takes a moment."""
    known = next((record for record in run.store.records(digest) if record.get("kind") == "cost"), None)
    if known is None:
        # By its own signature: a later model of a chain takes more than a row of the data.
        built = rebuild(run.store, digest, allowed=run.allowed)
        cost = count(built.module, built.manifest.signature)
        run.store.add_record(digest, {"kind": "cost", "macs": cost.macs, "params": cost.params})
        return cost
    return Cost(macs=int(known["macs"]), params=int(known["params"]))


def spec_latencies(run: Run, specs: dict[str, Spec], baseline: str) -> dict[str, Figures]:
    """Latency of each ensemble walked in this process, recorded under the spec's digest."""
    settings = run.config.latency
    facts = machine()
    here = {
        "kind": "latency",
        "method": METHOD,
        "fingerprint": machine_fingerprint(facts),
        "batch": settings.batch,
        "threads": settings.threads,
    }
    keys = {name: fingerprint(spec.plain()) for name, spec in specs.items()}
    known: dict[str, Figures] = {}
    for name, key in keys.items():
        fitting = [record for record in run.store.records(key) if here.items() <= record.items()]
        if fitting:
            known[name] = min(fitting, key=lambda record: float(record["time"]))
    missing = {name: spec for name, spec in specs.items() if name not in known}
    if missing:
        for name, figures in _measure_specs(run, missing, baseline).items():
            known[name] = {**figures, **here, "machine": facts, "time": time.time()}
            run.store.add_record(keys[name], known[name])
    return {name: _shown(known[name]) for name in specs}


def _measure_specs(run: Run, specs: dict[str, Spec], baseline: str) -> dict[str, Figures]:
    settings = run.config.latency
    inputs = run.dataset.part("validation").inputs
    rows = inputs[np.arange(settings.batch) % len(inputs)]  # repeated where there are fewer
    members = {member for spec in specs.values() for member in distinct(spec.tree)}
    loaded = {
        member: run.executable(member)
        for member in sorted(members, key=lambda member: (member.digest, member.execution))
    }
    reference = run.executable(Member(name="baseline", digest=baseline))
    calls: dict[str, Callable[[], object]] = {"": lambda: reference(rows)}
    for name, spec in specs.items():
        calls[name] = functools.partial(predict, spec.tree, loaded, rows, spec.signature.task)
    found = compare(calls, settings, baseline="")
    known = Bench(run.store, settings).recorded((baseline, "eager"))
    pace = float(known["median_ms"]) if known else found[""].median_ms
    return {name: one.at_pace(pace).plain() for name, one in found.items() if name}
