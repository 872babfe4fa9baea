"""`orchestrator reproduce`: make one variant again from its manifest, compare it with what was recorded."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from orchestrator.compression.plan import Context, apply_plan, what_decides
from orchestrator.config.ensemble import leaves
from orchestrator.config.measure import Execution, LatencySettings, Metric
from orchestrator.config.steps import Plan, others_of
from orchestrator.data.dataset import Dataset
from orchestrator.errors import ExecutionError, InputError, NotFoundError
from orchestrator.measure.artifacts import measure_again
from orchestrator.measure.latency import METHOD
from orchestrator.measure.machine import machine, machine_fingerprint
from orchestrator.measure.quality import quality
from orchestrator.pipeline.comparing import (
    TOLERANCE,
    Check,
    Difference,
    Figure,
    Reproduction,
    differences,
    latency_checks,
    quality_check,
)
from orchestrator.pipeline.context import store_root
from orchestrator.pipeline.retraining import retrain
from orchestrator.pipeline.sources import Source, rows_of, source_of
from orchestrator.progress import Progress
from orchestrator.runtime.execute import executions
from orchestrator.runtime.outputs import outputs_on
from orchestrator.store.artifacts import Manifest
from orchestrator.store.store import Store
from orchestrator.training.device import device_of

Record = dict[str, Any]


@dataclass(frozen=True)
class _Origin:
    """What an artifact was made of."""

    digest: str
    manifest: Manifest
    parent: str | None
    """Digest of the artifact that the plan was applied to; None for one that was trained."""
    plan: Plan
    """The steps on the parent; empty for one that was trained."""

    @property
    def made(self) -> dict[str, Any]:
        """Threads, torch version, instruction set and device that it was made with."""
        found: dict[str, Any] = self.manifest.what.get("compression") or self.manifest.what
        return found

    @property
    def threads(self) -> int:
        return int(self.made.get("threads", 1))

    @property
    def device(self) -> str:
        """Where it is made again: a GPU, if this machine has one, when it was made on one."""
        return device_of(0.0 if self.made.get("device", "cpu") == "cpu" else 1.0)

    @property
    def here(self) -> dict[str, Any]:
        """The same as they are now."""
        own = {"device": "cpu", **what_decides(self.threads, self.device)}
        return own if self.plan else {**own, "isa": machine()["isa"]}  # a training notes the processor's


def reproduce(
    name: str,
    *,
    store: str | None = None,
    config: str | None = None,
    data: str | None = None,
    allow: tuple[str, ...] = (),
    execution: Execution | None = None,
    tolerance: float = TOLERANCE,
    train_again: bool = False,
) -> Reproduction:
    """Make a variant again in a store of its own and compare; the real store gets no artifact.

    Args:
        name: ref, digest, or the beginning of a digest.
        store: path or URI of the store.
        config: run file that says where the data lies; not needed where the records beside the variant do.
        data: folder of the data files, in place of the one that the run file or the record names.
        allow: import paths that factories, losses, metrics and data may come from.
        execution: look at this one only; all that were recorded when not given.
        tolerance: relative distance of two latencies that counts as noise.
        train_again: train a model that has no plan once more, as the run file says.

    Raises:
        NotFoundError: no such variant, or its parent is gone from the store.
        InputError: it was trained or imported, not compressed; or the data is missing or another one.
        CompressionError: the plan cannot be applied here.
    """
    progress, opened = Progress(), Store(store_root(store), create=False)
    digest = opened.find(name)
    origin = _origin(opened, name, digest)
    if not origin.plan and (not train_again or _belongs(origin)):
        raise _trained(name, origin)
    records = opened.records(digest)
    source = source_of(name, records, config=config, data=data, allow=allow, manifest=origin.manifest)
    dataset = rows_of(name, source, origin.manifest)
    with TemporaryDirectory(prefix="reproduce-", ignore_cleanup_errors=True) as folder:
        scratch = Store(Path(folder) / "store")
        _copy(opened, scratch, name, origin)
        progress("reproduce", f"{name}: {_steps(origin)}, in a store of its own")
        again = (
            _applied(scratch, origin, source, dataset, progress)
            if origin.plan
            else retrain(scratch, digest, origin.manifest, records, source, dataset, progress)
        )
        progress("reproduce", f"made {again[:12]}; measuring")
        compared = _Compared(opened, scratch, origin, again, source, dataset)
        checks, machines = compared.checks(records, execution, tolerance)
        manifest = compared.manifest
    changed = differences(origin.made, origin.here, machines)
    checks.insert(0, _digest_check(origin, again, manifest, changed))
    return Reproduction(
        variant=name,
        digest=digest,
        parent=origin.parent,
        plan=tuple(step.kind for step in origin.plan),
        differences=tuple(changed),
        checks=tuple(checks),
    )


def _origin(store: Store, name: str, digest: str) -> _Origin:
    """The parent and the steps on it: the manifest names both, but its plan begins at the first parent."""
    if not store.has(digest):
        if store.has_spec(digest):
            raise InputError("an ensemble is fitted, not compressed", name, "name one of its members")
        raise NotFoundError("the artifact is gone from the store", name, "run again to make it anew")
    manifest = store.manifest(digest)
    if not manifest.plan:
        return _Origin(digest, manifest, None, ())
    if not manifest.parents:
        raise NotFoundError(
            "the manifest names no parent", name, "a variant can be made again from a stored parent only"
        )
    parent = manifest.parents[0]
    if not store.has(parent):
        raise NotFoundError(
            f"the parent of '{name}' is gone from the store",
            parent[:12],
            "restore it, or run its run file again: that makes the same artifact",
        )
    before = store.manifest(parent).plan
    # A student (`distill`) shares nothing with its parent's form, so its plan begins with itself.
    shared = len(before) if manifest.plan[: len(before)] == before else 0
    return _Origin(digest, manifest, parent, manifest.plan[shared:])


def _belongs(origin: _Origin) -> bool:
    """Whether it was trained for an ensemble that alone knows how: a boosting's stage, a chain's later model,
    or without a fold."""
    return not {"before", "fold", "sees"}.isdisjoint(origin.manifest.what)


def _trained(name: str, origin: _Origin) -> InputError:
    if _belongs(origin):
        return InputError(
            "the model was trained as a part of an ensemble, which cannot be done for it alone",
            name,
            "run its run file again with another --store and compare the digests",
        )
    if origin.manifest.what.get("imported"):
        return InputError(
            "the model was imported: nothing here made it", name, "name a variant that was made from it"
        )
    return InputError(
        "the model was trained, its plan is empty: there is no parent to make it again from",
        name,
        "pass --retrain --config RUN.yaml to train it once more and compare, which takes as long as it did",
    )


def _copy(store: Store, scratch: Store, name: str, origin: _Origin) -> None:
    """Give the scratch store what the plan starts from, and nothing that the plan made."""
    others = [other for step in origin.plan for other in others_of(step)]
    first = [origin.parent] if origin.parent is not None else list(origin.manifest.parents)
    specs = [store.spec(other) for other in others if store.has_spec(other)]
    for spec in specs:
        scratch.put_spec(spec)
    members = [leaf.digest for spec in specs for leaf in leaves(spec.tree)]
    models = [digest for digest in (*first, *others) if not store.has_spec(digest)]
    for digest in dict.fromkeys([*models, *members]):
        if not store.has(digest):
            raise NotFoundError(f"a model that '{name}' was made of is gone from the store", digest[:12])
        store.copy_artifact(digest, scratch)


def _applied(scratch: Store, origin: _Origin, source: Source, dataset: Dataset, progress: Progress) -> str:
    """The plan on the parent, as it was done."""
    assert origin.parent is not None
    context = Context(
        seed=origin.manifest.seed,
        threads=origin.threads,
        device=origin.device,
        data=dataset.digest,
        calibration=dataset.part("calibration").inputs,
        train=dataset.part("train"),
        validation=dataset.part("validation"),
        metric=source.metric,
        allowed=source.allowed,
        on_epoch=lambda report: progress("reproduce", report.text(source.metric.label)),
    )
    return apply_plan(scratch, origin.parent, origin.plan, context)


def _steps(origin: _Origin) -> str:
    return " > ".join(step.kind for step in origin.plan) or "training"


@dataclass(frozen=True)
class _Compared:
    """The new artifact against the old one's records."""

    store: Store
    scratch: Store
    origin: _Origin
    again: str
    source: Source
    dataset: Dataset

    @property
    def manifest(self) -> Manifest:
        return self.scratch.manifest(self.again)

    def checks(
        self, records: Iterable[Record], execution: Execution | None, tolerance: float
    ) -> tuple[list[Check], list[dict[str, Any]]]:
        """All checks but the digest's, and the machines that their records are of."""
        known = [record for record in records if execution in (None, record.get("execution"))]
        known.sort(key=lambda record: float(record.get("time", 0.0)))
        qualities = _first(
            [record for record in known if self._fits(record)], ("execution", "batch", "threads")
        )
        latencies = _first(
            _here_first(record for record in known if _is_latency(record)),
            ("execution", "batch", "threads"),
        )
        found = [self._quality(record) for record in qualities] or [self._unrecorded(execution)]
        if not latencies:
            found.append(Check("latency", None, None, "unknown", "nothing was recorded"))
        for record in latencies:
            found += self._latency(record, tolerance)
        return found, [record["machine"] for record in (*qualities, *latencies)]

    def _fits(self, record: Record) -> bool:
        return record.get("kind") == "quality" and record["data"] == self.dataset.digest

    def _quality(self, record: Record) -> Check:
        then = Figure(record["metric"]["value"], tuple(record["metric"]["ci"]))
        latency = LatencySettings(batch=record["batch"], threads=record["threads"])
        return self._scored(Metric(**record["settings"]), record["execution"], latency, then)

    def _unrecorded(self, execution: Execution | None) -> Check:
        chosen = execution or executions(self.manifest)[0]
        return self._scored(self.source.metric, chosen, LatencySettings(), None)

    def _scored(
        self, metric: Metric, execution: Execution, latency: LatencySettings, then: Figure | None
    ) -> Check:
        name = f"{metric.label} on validation ({execution})"
        allowed = self.source.allowed
        try:
            outputs = outputs_on(
                self.scratch, self.again, execution, self.dataset, "validation", latency, allowed=allowed
            )
        except ExecutionError as error:
            return Check(name, then, None, "fails", f"cannot run here: {error}")
        targets = self.dataset.part("validation").targets
        now = quality(metric, outputs, targets, allowed=allowed)
        return quality_check(name, then, Figure(now.value, now.ci))

    def _latency(self, record: Record, tolerance: float) -> list[Check]:
        """Measured again, in turns with what it was measured in turns with."""
        keys = ("batch", "threads", "blocks", "most_blocks", "block_ms", "tolerance")
        settings = LatencySettings(**{key: record[key] for key in keys if key in record})
        many = "s" if settings.threads > 1 else ""
        label = f"{record['execution']}, batch {settings.batch}, {settings.threads} thread{many}"
        baseline = self._baseline(record["baseline"])
        try:
            now, parent = measure_again(
                self.scratch,
                baseline,
                (self.again, record["execution"]),
                settings,
                allowed=self.source.allowed,
            )
        except ExecutionError as error:
            then = Figure(record["median_ms"], tuple(record["ci"]), 3)
            return [Check(f"latency in ms ({label})", then, None, "fails", f"cannot run here: {error}")]
        checks = latency_checks(label, record, now, parent, tolerance)
        return checks if baseline == record["baseline"] else checks[:1]

    def _baseline(self, digest: str) -> str:
        """What ratios were to, if it is still there; else the new artifact itself."""
        if digest == self.origin.digest:
            return self.again
        if self.scratch.has(digest):
            return digest
        if not self.store.has(digest):
            return self.origin.parent or self.again
        self.store.copy_artifact(digest, self.scratch)
        return digest


_DECIDING = ("torch", "instruction set", "device", "cores")
"""Differences with which other weights are no failure."""


def _digest_check(origin: _Origin, again: str, made: Manifest, changed: Collection[Difference]) -> Check:
    """The digest must come out again where all that decides it is as it was."""
    if again == origin.digest:
        return Check("digest", origin.digest, again, "holds", "equal")
    if made.files == origin.manifest.files:
        return Check(
            "digest", origin.digest, again, "explained", "the weights are equal bit for bit, the manifest not"
        )
    deciding = [found.what for found in changed if found.what in _DECIDING]
    if deciding:
        said = f"it cannot be equal with another {' and '.join(deciding)}"
        return Check("digest", origin.digest, again, "explained", said)
    return Check("digest", origin.digest, again, "fails", "other weights" + _measured_plan(origin.plan))


def _measured_plan(plan: Plan) -> str:
    """A hint where the plan itself depends on a measurement."""
    if any(getattr(step, "latency", None) is not None for step in plan):
        return ": the plan prunes to a measured latency, which another measurement may reach otherwise"
    return ""


def _is_latency(record: Record) -> bool:
    """Whether it is a latency that can be compared with one that is measured now."""
    return (record.get("kind"), record.get("method")) == ("latency", METHOD)


def _here_first(records: Iterable[Record]) -> list[Record]:
    """Records of this machine before those of others; their order is kept otherwise."""
    here = machine_fingerprint(machine())
    return sorted(records, key=lambda record: record["fingerprint"] != here)


def _first(records: Iterable[Record], keys: tuple[str, ...]) -> list[Record]:
    """The first record of each combination of these keys."""
    found: dict[tuple[Any, ...], Record] = {}
    for record in records:
        found.setdefault(tuple(record[key] for key in keys), record)
    return list(found.values())
