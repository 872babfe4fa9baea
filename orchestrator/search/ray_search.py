"""The search on a Ray cluster: trials by a driver, epochs to the log and to the rule that stops trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import ray
from pydantic import Field, TypeAdapter, ValidationError
from ray.actor import ActorHandle
from ray.exceptions import RayError

from orchestrator.config.free import Config
from orchestrator.config.search import EarlyStop, Population, SearchSettings
from orchestrator.config.steps import first_out_of_order, work_of
from orchestrator.errors import SearchError
from orchestrator.mailbox import Mailbox, deliver, on_this_node, open_mailbox, send
from orchestrator.measure.metrics import larger_is_better
from orchestrator.measure.turns import Turns
from orchestrator.search import ray_pool, ray_tune
from orchestrator.search.arms import BF16, COMPILED, arm_of, arms, config_of
from orchestrator.search.batches import BatchSearch, Driver, Measure, OnEvent
from orchestrator.search.early_stop import Report, rule_of
from orchestrator.search.ledger import Ledger, Spent
from orchestrator.search.objectives import PARENT, TrialRow
from orchestrator.search.outcome import Outcome
from orchestrator.search.population import PopulationStudy
from orchestrator.search.space import name_of, plan_of, variant_key
from orchestrator.search.study import BatchStudy, Suggestion
from orchestrator.search.trial import Job, TrialJob, epochs_of, evaluate, known, row_of, study_settings
from orchestrator.search.tuning import TuneJob
from orchestrator.store.store import Store
from orchestrator.training.state import EpochReport

DRIVERS: Mapping[str, Driver] = {"tune": ray_tune.drive, "pool": ray_pool.drive}
"""By `search.driver`."""
OnEpoch = Callable[[str, EpochReport], None]
"""Called in the driver with the name of a trial and an epoch of its recovery."""
OnRunning = Callable[[int], None]
"""Called in the driver with the number of trials that run at this moment."""
_JOB: TypeAdapter[Job] = TypeAdapter(Annotated[TrialJob | TuneJob, Field(discriminator="kind")])
_SHARED = ("job", "mailbox", "judge")
"""Entries of a worker's config that are not the trial's."""


class Searched(NamedTuple):
    """Every trial in order of its number, failed ones with their reason; the honest arms; and the time."""

    rows: list[TrialRow]
    arms: list[TrialRow]
    spent: Spent


def run_search(
    job: Job,
    parent: TrialRow,
    *,
    measure: Measure,
    on_event: OnEvent,
    storage: Path,
    on_epoch: OnEpoch = lambda name, report: None,  # noqa: ARG005
    on_running: OnRunning = lambda count: None,  # noqa: ARG005
    connect: Callable[[], object] = lambda: None,
) -> Searched:
    """Run the whole search on the cluster.

    Args:
        job: what to search and where the parent and the rows lie; its paths must hold on every node.
        parent: the measured parent (`trial.parent_row`); drops and ratios are against it.
        measure: adds latencies to a batch of rows.
        on_event: told of every trial that ended or was measured.
        on_epoch: told of every epoch of a recovery, with the trial's name.
        on_running: told about once a second how many trials run.
        storage: folder for the driver's own files, removed at the end.
        connect: joins the cluster; called only when a trial has to run, so that a finished search needs none.

    Raises:
        SearchError: the parent was not measured, or the driver ended early.
        ResourceError: the cluster can never hold one trial.
    """
    if not parent.ok:
        raise SearchError("the parent has no latency to compare with", parent.reason or parent.status)
    epochs, judge = _Epochs(on_epoch), _Judge(job)
    ledger = Ledger(Store(job.store), study_settings(job))
    search = _search(job, ledger, measure, on_event, epochs, judge)

    def poll() -> None:
        epochs.tell()
        on_running(search.running)

    search.advance()
    if not search.finished:
        connect()
        shared = {"job": job.plain(), "mailbox": epochs.open(), "judge": judge.open()}
        try:
            driver = DRIVERS[job.search.driver]
            driver(search, run_trial, shared, job.search, storage=storage, poll=poll)
        finally:
            epochs.close()
            judge.close()
    if not search.finished:
        raise SearchError("the search was interrupted", None, "run again: it continues from the store")
    return Searched(search.rows, search.arms, ledger.spent())


def _search(
    job: Job, ledger: Ledger, measure: Measure, on_event: OnEvent, epochs: _Epochs, judge: _Judge
) -> BatchSearch:
    """The searcher, whatever drives it: outcomes from the store, rows to the ledger."""
    store = Store(job.store)

    def told(row: TrialRow) -> None:
        epochs.tell()  # they come before how the trial ended
        on_event(row)

    def looked_up(config: Config) -> Outcome | None:
        outcome = known(store, job, config)
        if outcome is not None:
            judge.learn(config, outcome)
        return outcome

    return BatchSearch(
        _study(job),
        to_row=lambda suggestion, outcome: row_of(suggestion.number, suggestion.config, outcome, job),
        lookup=looked_up,
        measure=lambda rows: [row.limited(job.search) for row in measure(rows)],
        on_event=told,
        work=lambda suggestion: 0 if suggestion.shares else _work(job, suggestion.config),
        arms=_arms(job),
        ledger=ledger,
        most_s=60 * job.search.minutes if job.search.minutes else math.inf,
        ahead=int(job.search.overlap),
    )


def _work(job: Job, config: Config) -> float:
    """How much a trial trains, compared with others of its search."""
    if isinstance(job.search, SearchSettings):
        return work_of(plan_of(config, job.search))
    return epochs_of(job, config)


def _study(job: Job) -> PopulationStudy | BatchStudy:
    if isinstance(job.search, SearchSettings) and isinstance(job.search.sampler, Population):
        return PopulationStudy(job.search, job.seed)

    def valid(config: Config) -> bool:
        # The run file was checked with one free value changed at a time; two together may make no model, or
        # steps out of their order.
        with suppress(ValidationError):
            epochs_of(job, config)
            search = job.search
            return not isinstance(search, SearchSettings) or not first_out_of_order(plan_of(config, search))
        return False

    return BatchStudy(job.search, job.seed, valid)


def run_trial(config: dict[str, Any]) -> dict[str, float]:
    """What a worker runs: evaluate one config and return flat, finite numbers."""
    chosen: Config = {name: value for name, value in config.items() if name not in _SHARED}
    job, judge = _JOB.validate_python(config["job"]), config["judge"]

    def told(report: EpochReport) -> None:
        send(config["mailbox"], name_of(chosen, job.search), report.plain())
        rest()

    def goes_on(report: Report) -> bool:
        # Without its judge a trial ends as if nothing were ever stopped.
        with suppress(RayError):
            return bool(ray.get(judge.goes_on.remote(tuple(report))))
        return True

    judged = judge is not None and arm_of(chosen) is None
    with Turns(job.store).working() as rest:
        outcome = evaluate(job, chosen, told, goes_on if judged else None)
    return {"succeeded": float(not outcome.failure), "metric": outcome.metric, "drop": outcome.drop}


def _arms(job: Job) -> list[Suggestion]:
    """The honest arms of a search for compressed variants, numbered downwards from the parent; those that are
    compiled only where a compiler is."""
    settings = job.search
    if not isinstance(settings, SearchSettings) or not settings.arms:
        return []
    none = (COMPILED, BF16) if "aoti" in job.lacking else ()
    numbered = enumerate(arms(settings))
    return [
        Suggestion(PARENT - 1 - place, config_of(label)) for place, label in numbered if label not in none
    ]


class _Rule:
    """The rule that stops trials, as an actor: all workers ask the same one."""

    def __init__(self, settings: EarlyStop) -> None:
        self._rule = rule_of(settings)

    def goes_on(self, report: tuple[str, int, float, float, int]) -> bool:
        """As `Rule.goes_on`."""
        return self._rule.goes_on(Report(*report))


class _Judge:
    """Starts the rule's actor, and tells it of trials that ended before or elsewhere."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._actor: ActorHandle[Any] | None = None
        self._untold: list[Report] = []

    def open(self) -> ActorHandle[Any] | None:
        """The actor; None when nothing is to be stopped."""
        if self._job.search.early_stop is not None:
            remote: Any = ray.remote(_Rule)
            # On the driver's node, as the mailbox: another node that is lost does not take it along.
            options = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": on_this_node()}
            self._actor = remote.options(**options).remote(self._job.search.early_stop)
            self._tell()
        return self._actor

    def learn(self, config: Config, outcome: Outcome) -> None:
        """Take an ended trial's curve into account; a report that the rule knows changes nothing."""
        if self._job.search.early_stop is None or not outcome.curve or arm_of(config) is not None:
            return
        name, sign = variant_key(config, self._job.search), 1 if larger_is_better(self._job.metric) else -1
        epochs = epochs_of(self._job, config)
        self._untold += [
            Report(name, number, outcome.cost, sign * metric, epochs)
            for number, metric in zip(outcome.epochs, outcome.curve, strict=False)
        ]
        self._tell()

    def close(self) -> None:
        """End the actor."""
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None

    def _tell(self) -> None:
        if self._actor is not None:
            for report in self._untold:
                self._actor.goes_on.remote(tuple(report))
            self._untold = []


class _Epochs:
    """Passes on what trials tell while they run."""

    def __init__(self, on_epoch: OnEpoch) -> None:
        self._on_epoch = on_epoch
        self._mailbox: Mailbox | None = None

    def open(self) -> Mailbox:
        """What trials send to."""
        self._mailbox = open_mailbox()
        return self._mailbox

    def tell(self) -> None:
        """Pass on what came since the last call; a lost mailbox loses lines of a log and no more."""
        if self._mailbox is not None:
            with suppress(RayError):
                deliver(self._mailbox, lambda name, epoch: self._on_epoch(name, EpochReport(**epoch)))

    def close(self) -> None:
        """End the mailbox."""
        if self._mailbox is not None:
            ray.kill(self._mailbox)
            self._mailbox = None
