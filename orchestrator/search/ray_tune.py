"""The search on Ray Tune: our own searcher over a `BatchStudy`, one Tune trial a variant.

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
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from orchestrator.cluster import fitting
from orchestrator.config.search import SearchSettings
from orchestrator.errors import SearchError
from orchestrator.mailbox import Mailbox, deliver, open_mailbox, send
from orchestrator.search.objectives import TrialRow
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
OnRunning = Callable[[int], None]
"""Called in the driver with the number of trials that run at this moment."""
Lookup = Callable[[Config], Outcome | None]
"""The stored outcome of a trial that ended, in this search or before; None when there is none."""

_RETRIES = 1
"""Of a trial whose process died; a variant that cannot be built is a result and not tried again."""
_LONGEST_REASON = 300
POLL_S = 1.0
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune's own handler would end the search as if it were finished; Ctrl-C must reach the caller.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_search(
    job: TrialJob,
    parent: TrialRow,
    *,
    measure: Measure,
    on_event: OnEvent,
    storage: Path,
    on_epoch: OnEpoch = lambda name, report: None,  # noqa: ARG005
    on_running: OnRunning = lambda count: None,  # noqa: ARG005
    connect: Callable[[], object] = lambda: None,
) -> list[TrialRow]:
    """Run the whole search on the cluster.

    Args:
        job: what to search and where the parent and the rows lie; its paths must hold on every node.
        parent: the measured parent (`trial.parent_row`); drops and ratios are against it.
        measure: adds latencies to a batch of rows.
        on_event: told of every trial that ended or was measured.
        on_epoch: told of every epoch of a recovery, with the trial's name.
        on_running: told about once a second how many trials run.
        storage: folder for Tune's own files, removed at the end.
        connect: joins the cluster; called only when a trial has to run, so that a finished search needs none.

    Returns:
        Every trial in order of its number; failed ones carry their reason.

    Raises:
        SearchError: the parent was not measured, or Tune ended early.
        ResourceError: the cluster can never hold one trial.
    """
    if not parent.ok:
        raise SearchError("the parent has no latency to compare with", parent.reason or parent.status)
    store, epochs = Store(job.store), _Epochs(on_epoch, on_running)

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
        drive(search, tune_trial, shared, job.search, storage, [epochs])
        epochs.close()
    if not search.finished:
        raise SearchError("the search was interrupted", None, "run again: it continues from the store")
    return search.rows


def tune_trial(config: dict[str, Any]) -> None:
    """What a Tune worker runs: evaluate one config and report flat, finite numbers once."""
    chosen = {name: value for name, value in config.items() if name not in ("job", "mailbox")}

    def told(report: EpochReport) -> None:
        send(config["mailbox"], name_of(chosen), report.plain())

    outcome = evaluate(TrialJob.model_validate(config["job"]), chosen, told)
    tune.report({"succeeded": float(not outcome.failure), "metric": outcome.metric, "drop": outcome.drop})


class BatchSearch(Searcher):
    """Hands a study's suggestions to Tune, and a whole measured batch back to the study.

    A batch is told only when all its trials ended and were measured, in trial order: what is suggested
    next does not depend on which trial ended first. Outcomes are looked up, not taken from Tune's results.
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
        """A config for Tune; None while the batch's other trials run, FINISHED at the end."""
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
        """Tune's word that a trial ended; one that failed is ended by `fail`, which knows why."""
        del result
        if error or trial_id not in self._running:
            return
        suggestion = self._running.pop(trial_id)
        outcome = self._lookup(suggestion.config)
        self._end(suggestion, outcome or Outcome(failure="the trial ended without a result"))

    def fail(self, trial_id: str, reason: str) -> None:
        """End a trial that failed after its retries."""
        if trial_id in self._running:
            self._end(self._running.pop(trial_id), Outcome(failure=reason))

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
        self._search.fail(trial.trial_id, _last_line(trial.error_file))


class _Epochs(tune.Callback):
    """Passes on what trials tell while they run."""

    def __init__(self, on_epoch: OnEpoch, on_running: OnRunning) -> None:
        self._on_epoch, self._on_running = on_epoch, on_running
        self._mailbox: Mailbox | None = None
        self._looked = 0.0

    def open(self) -> Mailbox:
        """What trials send to."""
        self._mailbox = open_mailbox()
        return self._mailbox

    def tell(self) -> None:
        """Pass on what came since the last call; a lost mailbox loses lines of a log and no more."""
        if self._mailbox is not None:
            with suppress(RayError):
                deliver(self._mailbox, lambda name, epoch: self._on_epoch(name, EpochReport(**epoch)))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        del iteration, info
        if time.monotonic() - self._looked > POLL_S:
            self._looked = time.monotonic()
            self.tell()
            self._on_running(sum(trial.status == Trial.RUNNING for trial in trials))

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps its callbacks in files that are never read."""
        return {}

    def close(self) -> None:
        """End the mailbox."""
        if self._mailbox is not None:
            ray.kill(self._mailbox)
            self._mailbox = None


def drive(
    search: BatchSearch,
    trainable: Callable[[dict[str, Any]], None],
    shared: Mapping[str, Any],
    settings: SearchSettings,
    storage: Path,
    callbacks: Sequence[tune.Callback] = (),
) -> None:
    """Let Tune run what the searcher asks for, `shared` merged into every config, until it is finished.

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
                failure_config=tune.FailureConfig(max_failures=_RETRIES),
                callbacks=[_FailureReasons(search), *callbacks],
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


def _last_line(error_file: str | None) -> str:
    """The exception's own line at the end of the traceback that Tune wrote."""
    if error_file is None or not Path(error_file).exists():
        return "the trial's process failed"
    lines = [
        line.strip() for line in Path(error_file).read_text(errors="replace").splitlines() if line.strip()
    ]
    return lines[-1][:_LONGEST_REASON] if lines else "the trial's process failed"
