"""Trials by Ray Tune: our own searcher, one Tune trial a variant. Ray's pickled state is never read."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.error import TuneError
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from orchestrator.config.search import Searching
from orchestrator.errors import last_line
from orchestrator.search.batches import Source, Trainable
from orchestrator.search.ray_pool import POLL_S, RETRIES, trials_at_once

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune's own handler would end the search as if it were finished; Ctrl-C must reach the caller.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class _Keeper:
    """A source that keeps the error it raised: Tune makes some into the text of a traceback."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.error: Exception | None = None

    @property
    def finished(self) -> bool:
        return self._source.finished

    @finished.setter
    def finished(self, value: bool) -> None:
        self._source.finished = value

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        with self._kept():
            return self._source.suggest(trial_id)

    def on_trial_complete(self, trial_id: str) -> None:
        with self._kept():
            self._source.on_trial_complete(trial_id)

    def fail(self, trial_id: str, reason: str) -> None:
        with self._kept():
            self._source.fail(trial_id, reason)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = self.error or error
            raise


class TuneSearcher(Searcher):
    """A source of trials as Tune wants it."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """A config to run; None while there is none, FINISHED at the end."""
        config = self._source.suggest(trial_id)
        if config is None and self._source.finished:
            return Searcher.FINISHED  # type: ignore[return-value]  # Ray's own annotation lacks the word.
        return config

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tune's word that a trial ended; of one that failed `_FailureReasons` tells."""
        del result
        if not error:
            self._source.on_trial_complete(trial_id)

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """True: the source, not a wrapper, limits what runs at once."""
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
    """Tells the source why a trial failed, which Tune does not."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        del iteration, trials, info
        self._source.fail(trial.trial_id, _reason(trial.error_file))

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps its callbacks in files that are never read."""
        return {}


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


def drive(
    search: Source,
    trainable: Trainable,
    shared: Mapping[str, Any],
    settings: Searching,
    *,
    storage: Path,
    poll: Callable[[], None] = lambda: None,
) -> None:
    """Let Tune run what the searcher asks for; a `Driver`.

    Raises:
        ResourceError: the cluster can never hold one trial.
        Exception: what the searcher raised.
    """
    at_once = trials_at_once(settings)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    storage.mkdir(parents=True, exist_ok=True)
    source = _Keeper(search)
    with (
        _quiet_tune(),
        tempfile.TemporaryDirectory(prefix="search-", dir=storage, ignore_cleanup_errors=True) as folder,
    ):
        tuner = tune.Tuner(
            tune.with_resources(trainable, _resources(settings)),
            param_space=dict(shared),
            tune_config=tune.TuneConfig(
                search_alg=TuneSearcher(source),
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
                callbacks=[_FailureReasons(source), _Poll(poll)],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except TuneError:
            if source.error is not None:
                raise source.error from None
            raise


def _resources(settings: Searching) -> tune.PlacementGroupFactory:
    """What a trial holds: a placement group of one bundle, which is what Tune places by node labels."""
    bundle: dict[str, float] = {"CPU": settings.cpus, "GPU": settings.gpus, "memory": settings.memory_bytes}
    placed: dict[str, Any] = {"bundle_label_selector": [settings.labels]} if settings.labels else {}
    return tune.PlacementGroupFactory([bundle], **placed)


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
    text = Path(str(error_file)).read_text(errors="replace") if written else ""
    return last_line(text) if text.strip() else "the trial's process failed"
