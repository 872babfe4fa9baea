"""The search stage: trials on the cluster, latencies measured apart, few looks at the contract part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from orchestrator.config.claim import claim
from orchestrator.config.ensemble import Member
from orchestrator.config.measure import Target
from orchestrator.config.search import SearchSettings
from orchestrator.errors import DataError, SearchError
from orchestrator.measure.bench_actor import check_offered
from orchestrator.measure.metrics import larger_is_better, score
from orchestrator.measure.promise import Verdict, non_inferior
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.measuring import Measurer, Place
from orchestrator.pipeline.recording import record_quality
from orchestrator.pipeline.watching import SearchWatch
from orchestrator.search.arms import EAGER, MEMBER
from orchestrator.search.choose import Choice, choose
from orchestrator.search.ledger import Ledger, Spent
from orchestrator.search.objectives import TrialRow, front_of
from orchestrator.search.ray_search import Searched, run_search
from orchestrator.search.trial import Job, TrialJob, parent_row, study_settings

_MEMBER_NUMBER = -1000
"""Of the row of the best single member, which is no trial."""


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
    """The contract part's answer about the chosen variant, else about the last that it was asked about."""
    reason: str
    arms: tuple[TrialRow, ...] = ()
    """The honest arms, the parent first; those that failed carry their reason."""
    elsewhere: dict[str, tuple[TrialRow, ...]] = field(default_factory=dict)
    """By further target: every variant and arm that finished, as measured there."""
    spent: Spent = field(default_factory=Spent)
    """Time of the search, and of the pauses in which its latencies were measured."""

    def member(self, name: str) -> Member:
        """`chosen` or `fastest` as an ensemble's member; the parent where none qualified."""
        row = self.front[0] if name == "fastest" else self.chosen or self.parent
        return Member(name=name, digest=row.digest, execution=row.execution)


def search(
    run: Run, models: dict[str, str], variants: Mapping[str, Member], *, fresh: bool = False
) -> Found | None:
    """Search variants of the parent model; None when the run file asks for no search.

    Trials and latencies that are in the store are not repeated.

    Args:
        run: whose.
        models: digests by name.
        variants: of the run file, by name; steps may name them like models.
        fresh: search anew even if the search had other settings before.

    Raises:
        ConfigError: the run's search had other settings before, and not `fresh`.
        SearchError: no trial finished.
    """
    settings = run.config.search
    if settings is None:
        return None
    digests = models | {name: member.digest for name, member in variants.items()}
    job = _job(run, _by_digest(run, settings, digests), models[settings.parent])
    claim_study(run, "study", job, fresh)
    with closing(Measurer(place(run, fresh), job.parent, settings.latency)) as measurer:
        (parent,) = measurer([parent_row(job, settings.parent)])
        job = job.model_copy(update={"bench": measurer.machine})
        run.progress("search", f"{settings.trials} trials over {settings.parent}: {figures(parent, run)}")
        lacking = [one for one in settings.executions if one in job.lacking]
        if lacking:
            needs = f"{' and '.join(lacking)} lack a compiler or a package here (`orchestrator doctor`)"
            run.progress("search", f"{needs}: variants run in their next execution")
        rows, arms, spent = searched(run, job, parent, measurer)
        members = best_member(run, job, models) if settings.arms else []
        arms = [parent, *arms, *(row.limited(job.search) for row in measurer(members))]
    finished = [row for row in (*rows, *arms) if row.ok]
    candidates = [row for row in (*rows, *arms) if row.arm not in (EAGER, MEMBER)]
    best = front_of([row for row in candidates if row.ok])
    choice = _choice(run, job, candidates, parent)
    run.progress("search", choice.reason)
    record_quality(run, [(row.digest, row.execution) for row in finished], settings.latency)
    run.name_artifact("fastest", best[0].digest)
    run.name_artifact("chosen", (choice.row or parent).digest)
    elsewhere = {
        name: on_target(run, job, name, target, finished, fresh) for name, target in settings.targets.items()
    }
    return Found(
        parent,
        tuple(rows),
        tuple(best),
        choice.row,
        choice.verdict,
        choice.reason,
        tuple(arms),
        elsewhere,
        spent,
    )


def searched(run: Run, job: Job, parent: TrialRow, measurer: Measurer, stage: str = "search") -> Searched:
    """Run the trials on the cluster, tell of them, and give their rows and those of the arms.

    Raises:
        SearchError: no trial finished.
    """
    watch = SearchWatch(run, parent, job.search.trials, stage=stage)

    def told(row: TrialRow) -> None:
        if row.status == "evaluated":
            measurer.prepare(row)
        watch.row(row)

    def connect() -> None:
        run.cluster()
        measurer.open()  # before a trial runs, lest it cannot be measured
        for target in job.search.targets.values():
            if target.resource is not None:
                check_offered(target.resource)

    found = run_search(
        job,
        parent,
        measure=measurer,
        on_event=told,
        on_epoch=watch.epoch,
        on_running=watch.running,
        storage=run.folder / "tune",
        connect=connect,
    )
    minutes, wanted = job.search.minutes, job.search.trials
    if minutes and len(found.rows) < wanted and found.spent.seconds >= 60 * minutes:
        run.progress(stage, f"{minutes:g} minutes are over after {len(found.rows)} of {wanted} trials")
    if not any(row.ok for row in found.rows):
        raise SearchError("no trial finished", found.rows[0].reason if found.rows else "there was none")
    run.progress(stage, paused(found.spent))
    return found


def best_member(run: Run, job: TrialJob, models: dict[str, str]) -> list[TrialRow]:
    """The honest arm of the best other model of the run, without its latency; none if there is none."""
    dataset, metric = run.dataset, job.metric
    targets = dataset.part("validation").targets
    parent = run.outputs(Member(name="parent", digest=job.parent), "validation")
    before = score(metric, parent, targets, allowed=job.allowed)
    sign = 1 if larger_is_better(metric) else -1
    rows: list[TrialRow] = []
    for name, digest in models.items():
        if digest == job.parent:
            continue
        value = score(
            metric, run.outputs(Member(name=name, digest=digest), "validation"), targets, allowed=job.allowed
        )
        size = run.store.artifact_bytes(digest)
        row = TrialRow(_MEMBER_NUMBER, name, "eager", digest=digest, metric=value, bytes=size, arm=MEMBER)
        rows.append(replace(row, drop=sign * (before - value)))
    if not rows:
        return []
    best = min(rows, key=lambda row: (row.drop, row.bytes))
    own = run.outputs(Member(name=best.name, digest=best.digest), "validation")
    try:
        found = non_inferior(metric, own, parent, targets, job.search.promise, allowed=job.allowed)
    except DataError as error:  # an arm ends no search
        run.progress("search", f"the best other model, {best.name}, is left out: {error}")
        return []
    return [replace(best, drop_bound=found.bound, changed=found.changed, class_drop=found.class_drop)]


def claim_study(run: Run, name: str, job: Job, fresh: bool) -> None:
    """Keep `<run>/<name>` for this study, so that its settings do not change without a word.

    Raises:
        ConfigError: the run's search had other settings; more or fewer trials are the same search.
    """
    claim(
        run.folder / f"{name}.json",
        study_settings(job),
        "this run's search had other settings",
        "take another run name, or pass --fresh",
        fresh=fresh,
    )


def on_target(
    run: Run, job: Job, name: str, target: Target, rows: Sequence[TrialRow], fresh: bool
) -> tuple[TrialRow, ...]:
    """The same variants measured on another target; those that cannot run there are failed."""
    run.progress("search", f"measuring {len(rows)} variants for the target {name}")
    with closing(Measurer(place(run, fresh), job.parent, target, name)) as measurer:
        found = measurer([replace(row, status="evaluated") for row in rows])
    # The limit on latency is that of `search.latency`: this machine, batch and threads are others.
    limits = job.search.model_copy(update={"max_latency_ms": None})
    return tuple(row if row.status == "failed" else row.limited(limits) for row in found)


def place(run: Run, fresh: bool) -> Place:
    """Where a run measures."""
    return Place(run.store, run.cluster, run.folder / "bench", tuple(run.allowed), fresh)


def paused(spent: Spent) -> str:
    """The pauses in words."""
    return (
        f"trials paused {spent.paused_s:.1f} s of {spent.seconds:.1f} s ({spent.share:.0%}) while latencies "
        "were measured"
    )


def _by_digest(run: Run, settings: SearchSettings, digests: Mapping[str, str]) -> SearchSettings:
    """The settings with every other model or ensemble that a step may take by digest: a ref may move."""

    def resolved(name: JsonValue) -> JsonValue:
        if isinstance(name, dict):  # a free value, which may have a name of its own
            return {key: one if key == "name" else resolved(one) for key, one in name.items()}
        if isinstance(name, list):
            return [resolved(one) for one in name]
        return digests.get(name) or run.store.resolve(name) if isinstance(name, str) else name

    def walked(value: JsonValue) -> JsonValue:
        if isinstance(value, list):
            return [walked(one) for one in value]
        if not isinstance(value, dict):
            return value
        return {
            key: resolved(one) if key in ("others", "ensemble") else walked(one) for key, one in value.items()
        }

    changed = settings.plain()
    changed["space"], changed["small"] = walked(changed["space"]), walked(changed["small"])
    return SearchSettings.model_validate(changed)


def _job(run: Run, settings: SearchSettings, parent: str) -> TrialJob:
    return TrialJob(
        search=settings,
        parent=parent,
        store=run.store.location,
        data_folder=str(run.dataset.folder),
        data_digest=run.dataset.digest,
        metric=run.config.metric,
        seed=run.config.seed,
        allowed=tuple(sorted(run.allowed)),
    )


def _choice(run: Run, job: TrialJob, rows: Sequence[TrialRow], parent: TrialRow) -> Choice:
    """The variant that keeps the promise; what the contract part said in earlier starts is not asked anew."""
    ledger = Ledger(run.store, study_settings(job))

    def look(row: TrialRow) -> Verdict:
        verdict = _look(run, job, row)
        ledger.look(row.digest, row.execution, verdict)
        return verdict

    return choose(rows, parent, job.search.promise, look, ledger.looks())


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
    look = {
        "kind": "look",
        "parent": job.parent,
        "execution": row.execution,
        "data": job.data_digest,
        "metric": job.metric.plain(),
        "promise": job.search.promise.plain(),
    }
    if not any(look.items() <= record.items() for record in run.store.records(row.digest)):
        run.store.add_record(row.digest, {**look, "part": "contract", **verdict.plain()})
    return verdict


def figures(row: TrialRow, run: Run) -> str:
    """A measured row in words."""
    metric = run.config.metric.label
    return (
        f"{metric} {row.metric:.4f}, {row.latency_ms:.3f} ms a batch ({row.execution}), {row.bytes:,} bytes"
    )
