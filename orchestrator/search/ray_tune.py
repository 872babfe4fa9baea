"""The search on Ray: our own searcher over a `BatchStudy`, its trials driven by Tune or by a pool of actors.

Nothing of the search's truth lives in Ray: results are stages in the store, so a killed search is run
again from its start and finished trials answer at once. Ray's pickled experiment state is never read.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from orchestrator.cluster import fitting
from orchestrator.config.search import SearchSettings
from orchestrator.errors import SearchError
from orchestrator.mailbox import Mailbox, deliver, open_mailbox, send
from orchestrator.search import ray_pool
from orchestrator.search.objectives import TrialRow
from orchestrator.search.ray_pool import POLL_S, RETRIES, Trainable, last_line
from orchestrator.search.space import Config, name_of
from orchestrator.search.study import BatchStudy, Suggestion
from orchestrator.search.trial import Outcome, TrialJob, evaluate, known, row_of
from orchestrator.store.store import Store
from orchestrator.training.state import EpochReport

Measure = Callable[[Sequence[TrialRow]], Sequence[TrialRow]]
"""Adds latencies to `evaluated` rows; called in the driver while no trial runs. Idle trial workers keep
their cores in Ray's books meanwhile, so a measuring actor must ask for none."""
OnEvent = Callable[[TrialRow], None]
"""Called in the driver when a trial ended (`evaluated` or `failed`) and again when it was measured."""
OnEpoch = Callable[[str, EpochReport], None]
"""Called in the driver with the name of a trial and an epoch of its recovery."""
Lookup = Callable[[Config], Outcome | None]
"""The stored outcome of a trial that ended, in this search or before; None when there is none."""

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune's own handler would end the search as if it were finished; Ctrl-C must reach the caller.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class Driver(Protocol):
    """Runs what the searcher asks for, `shared` merged into every config, until it is finished.

    `poll` is called about every second in the driver's process; `storage` may hold the driver's own files
    while it runs. A trial that failed is tried once more before the searcher is told.
    """

    def __call__(
        self,
        search: BatchSearch,
        trainable: Trainable,
        shared: Mapping[str, Any],
        settings: SearchSettings,
        *,
        storage: Path,
        poll: Callable[[], None] = ...,
    ) -> None: ...


def run_search(
    job: TrialJob,
    parent: TrialRow,
    *,
    measure: Measure,
    on_event: OnEvent,
    storage: Path,
    on_epoch: OnEpoch = lambda name, report: None,  # noqa: ARG005
    connect: Callable[[], object] = lambda: None,
) -> list[TrialRow]:
    """Run the whole search on the cluster.

    Args:
        job: what to search and where the parent and the rows lie; its paths must hold on every node.
        parent: the measured parent (`trial.parent_row`); drops and ratios are against it.
        measure: adds latencies to a batch of rows.
        on_event: told of every trial that ended or was measured.
        on_epoch: told of every epoch of a recovery, with the trial's name.
        storage: folder for the driver's own files, removed at the end.
        connect: joins the cluster; called only when a trial has to run, so that a finished search needs none.

    Returns:
        Every trial in order of its number; failed ones carry their reason.

    Raises:
        SearchError: the parent was not measured, or the driver ended early.
        ResourceError: the cluster can never hold one trial.
    """
    if not parent.ok:
        raise SearchError("the parent has no latency to compare with", parent.reason or parent.status)
    store, epochs = Store(job.store), _Epochs(on_epoch)

    def told(row: TrialRow) -> None:
        epochs.tell()  # they come before how the trial ended
        on_event(row)

    search = BatchSearch(
        BatchStudy(job.search, job.seed),
        to_row=lambda suggestion, outcome: row_of(suggestion.number, suggestion.config, outcome, job),
        lookup=lambda config: known(store, job, config),
        measure=measure,
        on_event=told,
    )
    search.advance()
    if not search.finished:
        connect()
        shared = {"job": job.plain(), "mailbox": epochs.open()}
        driver = DRIVERS[job.search.driver]
        driver(search, run_trial, shared, job.search, storage=storage, poll=epochs.tell)
        epochs.close()
    if not search.finished:
        raise SearchError("the search was interrupted", None, "run again: it continues from the store")
    return search.rows


def run_trial(config: dict[str, Any]) -> dict[str, float]:
    """What a worker runs: evaluate one config and return flat, finite numbers."""
    chosen = {name: value for name, value in config.items() if name not in ("job", "mailbox")}

    def told(report: EpochReport) -> None:
        send(config["mailbox"], name_of(chosen), report.plain())

    outcome = evaluate(TrialJob.model_validate(config["job"]), chosen, told)
    return {"succeeded": float(not outcome.failure), "metric": outcome.metric, "drop": outcome.drop}


class BatchSearch(Searcher):
    """Hands a study's suggestions to a driver, and a whole measured batch back to the study.

    A batch is told only when all its trials ended and were measured, in trial order: what is suggested
    next does not depend on which trial ended first. Outcomes are looked up, not taken from the driver.
    """

    def __init__(
        self,
        study: BatchStudy,
        *,
        to_row: Callable[[Suggestion, Outcome], TrialRow],
        lookup: Lookup,
        measure: Measure,
        on_event: OnEvent,
    ) -> None:
        super().__init__()
        self.rows: list[TrialRow] = []
        self.finished = False
        self._study, self._to_row, self._lookup = study, to_row, lookup
        self._measure, self._on_event = measure, on_event
        self._waiting: list[Suggestion] = []
        self._running: dict[str, Suggestion] = {}
        self._ended: list[TrialRow] = []

    def advance(self) -> None:
        """Close the batch that ended, and ask for more until a trial has to run or all is done."""
        while not self.finished and not self._waiting and not self._running:
            if self._ended:
                self._close_batch()
            batch = self._study.ask()
            self.finished = not batch
            for suggestion in batch:
                outcome = self._lookup(suggestion.config)
                if outcome is None:
                    self._waiting.append(suggestion)
                else:
                    self._end(suggestion, outcome)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """A config to run; None while the batch's other trials run, FINISHED at the end."""
        self.advance()
        if self.finished:
            return Searcher.FINISHED  # type: ignore[return-value]  # Ray's own annotation lacks the word.
        if not self._waiting:
            return None
        self._running[trial_id] = self._waiting.pop(0)
        return dict(self._running[trial_id].config)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """The driver's word that a trial ended; one that failed is ended by `fail`, which knows why."""
        del result
        if error or trial_id not in self._running:
            return
        suggestion = self._running.pop(trial_id)
        outcome = self._lookup(suggestion.config)
        self._end(suggestion, outcome or Outcome(failure="the trial ended without a result"))

    def fail(self, trial_id: str, reason: str) -> None:
        """End a trial that failed after its retries; one that was finished before its process died counts."""
        if trial_id in self._running:
            suggestion = self._running.pop(trial_id)
            self._end(suggestion, self._lookup(suggestion.config) or Outcome(failure=reason))

    def _end(self, suggestion: Suggestion, outcome: Outcome) -> None:
        row = self._to_row(suggestion, outcome)
        self._ended.append(row)
        self._on_event(row)

    def _close_batch(self) -> None:
        evaluated = [row for row in self._ended if row.status == "evaluated"]
        evaluated.sort(key=lambda row: row.number)
        measured = list(self._measure(evaluated)) if evaluated else []
        rows = [row for row in self._ended if row.status == "failed"] + measured
        rows.sort(key=lambda row: row.number)
        self._study.tell(rows)
        self.rows += rows
        self._ended = []
        for row in measured:
            self._on_event(row)

    # What Tune wants of a searcher besides.

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """True: the batch, not a wrapper, limits what runs at once."""
        del max_concurrent
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store holds the results, and a search is never restored from Tune's files."""

    def get_state(self) -> dict[str, Any]:
        """Nothing, as `save`."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _FailureReasons(tune.Callback):
    """Tells the searcher why a trial failed, which Tune does not."""

    def __init__(self, search: BatchSearch) -> None:
        self._search = search

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        del iteration, trials, info
        self._search.fail(trial.trial_id, _reason(trial.error_file))


class _Poll(tune.Callback):
    """Calls a function about every `POLL_S` seconds."""

    def __init__(self, poll: Callable[[], None]) -> None:
        self._poll = poll
        self._polled = 0.0

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        del iteration, trials, info
        if time.monotonic() - self._polled > POLL_S:
            self._polled = time.monotonic()
            self._poll()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps its callbacks in files that are never read."""
        return {}


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


def drive(
    search: BatchSearch,
    trainable: Trainable,
    shared: Mapping[str, Any],
    settings: SearchSettings,
    *,
    storage: Path,
    poll: Callable[[], None] = lambda: None,
) -> None:
    """Let Tune run what the searcher asks for; a `Driver`.

    Raises:
        ResourceError: the cluster can never hold one trial.
    """
    at_once = min(settings.batch, fitting("a search trial", settings.cpus, settings.gpus, "search"))
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    storage.mkdir(parents=True, exist_ok=True)
    with (
        _quiet_tune(),
        tempfile.TemporaryDirectory(prefix="search-", dir=storage, ignore_cleanup_errors=True) as folder,
    ):
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": settings.cpus, "gpu": settings.gpus}),
            param_space=dict(shared),
            tune_config=tune.TuneConfig(
                search_alg=search,
                num_samples=-1,
                max_concurrent_trials=at_once,
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(Path(folder).resolve()),
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=[_FailureReasons(search), _Poll(poll)],
                verbose=0,
            ),
        ).fit()


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Tune warns of result files that were switched off and repeats every failure that a row tells."""
    logger = logging.getLogger("ray.tune")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _trial_name(trial: Trial) -> str:
    return f"trial-{trial.trial_id}"


def _reason(error_file: str | None) -> str:
    """Why a trial failed, from the traceback that Tune wrote."""
    written = error_file is not None and Path(error_file).exists()
    return last_line(Path(str(error_file)).read_text(errors="replace") if written else "")


DRIVERS: Mapping[str, Driver] = {"tune": drive, "pool": ray_pool.drive}
"""By `search.driver`."""
