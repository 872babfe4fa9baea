"""The search stage: trials on the cluster, latencies measured apart, one look at the contract part."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator.config.ensemble import Member
from orchestrator.config.search import SearchSettings
from orchestrator.errors import OrchestratorError, SearchError
from orchestrator.measure import bench_actor
from orchestrator.measure.artifacts import Subject, recorded_latency
from orchestrator.measure.promise import Verdict, non_inferior
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.recording import record_quality
from orchestrator.pipeline.watching import SearchWatch
from orchestrator.search.choose import choose
from orchestrator.search.objectives import TrialRow
from orchestrator.search.pareto import Point, front
from orchestrator.search.ray_search import run_search
from orchestrator.search.trial import TrialJob, parent_row


@dataclass(frozen=True)
class Found:
    """What a search hands to the later stages."""

    parent: TrialRow
    """The parent in eager fp32: what every ratio is against."""
    rows: tuple[TrialRow, ...]
    """Every trial, in order."""
    front: tuple[TrialRow, ...]
    """Best in metric, latency and bytes; fastest first."""
    chosen: TrialRow | None
    """The variant that keeps the promise."""
    verdict: Verdict | None
    """The contract part's answer about the preselected variant."""
    reason: str

    def member(self, name: str) -> Member:
        """`chosen` or `fastest` as an ensemble's member; the parent where none qualified."""
        row = self.front[0] if name == "fastest" else self.chosen or self.parent
        return Member(name=name, digest=row.digest, execution=row.execution)


def search(run: Run, models: dict[str, str]) -> Found | None:
    """Search variants of the parent model; None when the run file asks for no search.

    Trials and latencies that are in the store are not repeated.

    Raises:
        SearchError: no trial finished.
    """
    settings = run.config.search
    if settings is None:
        return None
    job = _job(run, settings, models[settings.parent])
    with closing(_Measurer(run, job)) as measurer:
        (parent,) = measurer([parent_row(job, settings.parent)])
        run.progress("search", f"{settings.trials} trials over {settings.parent}: {_figures(parent, run)}")
        watch = SearchWatch(run, parent, settings.trials)
        rows = run_search(
            job,
            parent,
            measure=measurer,
            on_event=watch.row,
            on_epoch=watch.epoch,
            on_running=watch.running,
            storage=run.folder / "tune",
            connect=run.cluster,
        )
    finished = [row for row in rows if row.ok]
    if not finished:
        raise SearchError("no trial finished", rows[0].reason if rows else "there was none")
    points = [Point(-row.drop, row.latency_ms, row.bytes) for row in finished]
    best = _distinct([finished[index] for index in front(points)])
    choice = choose(rows, parent, settings.promise, lambda row: _look(run, job, row))
    run.progress("search", choice.reason)
    record_quality(run, [(row.digest, row.execution) for row in finished], settings.latency)
    run.name_artifact("fastest", best[0].digest)
    run.name_artifact("chosen", (choice.row or parent).digest)
    return Found(parent, tuple(rows), tuple(best), choice.row, choice.verdict, choice.reason)


def _job(run: Run, settings: SearchSettings, parent: str) -> TrialJob:
    return TrialJob(
        search=settings,
        parent=parent,
        store=str(run.store.root),
        data_folder=str(run.dataset.folder),
        data_digest=run.dataset.digest,
        metric=run.config.metric,
        seed=run.config.seed,
        allowed=tuple(sorted(run.allowed)),
    )


class _Measurer:
    """Adds latencies to rows: recorded ones, or measured by an actor that starts when first needed."""

    def __init__(self, run: Run, job: TrialJob) -> None:
        self._run, self._job = run, job
        self._actor: Any = None

    def __call__(self, rows: Sequence[TrialRow]) -> list[TrialRow]:
        subjects: list[Subject] = [(row.digest, row.execution) for row in rows]
        return [_with_latency(row, record) for row, record in zip(rows, self._records(subjects), strict=True)]

    def _records(self, subjects: list[Subject]) -> list[dict[str, Any]]:
        settings = self._job.search.latency
        known = [
            recorded_latency(self._run.store, subject, settings, self._job.parent) for subject in subjects
        ]
        if all(known):
            return [record for record in known if record is not None]
        if self._actor is None:
            self._run.cluster()
            # Idle trial workers keep their cores in Ray's books, so the actor asks for none.
            self._actor = bench_actor.start(str(self._run.store.root), cpus=0, allowed=self._run.allowed)
        try:
            records: list[dict[str, Any]] = ray.get(
                self._actor.measure.remote(self._job.parent, subjects, settings.plain())
            )
        except RayTaskError as error:
            if isinstance(error.cause, OrchestratorError):
                raise error.cause from None
            raise
        except RayError as error:
            reason = str(error).strip().partition("\n")[0]
            raise SearchError("the latencies could not be measured", reason, "run again") from error
        return records

    def close(self) -> None:
        """End the actor, if there is one."""
        if self._actor is not None:
            ray.kill(self._actor)


def _with_latency(row: TrialRow, record: dict[str, Any]) -> TrialRow:
    if "error" in record:
        return row.failed(str(record["error"]))
    low, high = record["ci"]
    slow, fast = record["ratio_ci"]
    return row.measured(record["median_ms"], (low, high), record["ratio"], (slow, fast))


def _look(run: Run, job: TrialJob, row: TrialRow) -> Verdict:
    """The contract part's answer about one variant, recorded with it."""
    parent = run.outputs(Member(name="parent", digest=job.parent), "contract")
    variant = run.outputs(Member(name=row.name, digest=row.digest, execution=row.execution), "contract")
    verdict = non_inferior(
        job.metric,
        variant,
        parent,
        run.dataset.part("contract").targets,
        job.search.promise,
        allowed=run.allowed,
    )
    look = {"kind": "look", "parent": job.parent, "execution": row.execution, "data": job.data_digest}
    if not any(look.items() <= record.items() for record in run.store.records(row.digest)):
        run.store.add_record(row.digest, {**look, "part": "contract", **verdict.plain()})
    return verdict


def _distinct(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Several trials may have led to one artifact in one execution; the first stands for them."""
    found: dict[Subject, TrialRow] = {}
    for row in rows:
        found.setdefault((row.digest, row.execution), row)
    return list(found.values())


def _figures(row: TrialRow, run: Run) -> str:
    metric = run.config.metric.label
    return (
        f"{metric} {row.metric:.4f}, {row.latency_ms:.3f} ms a batch ({row.execution}), {row.bytes:,} bytes"
    )
