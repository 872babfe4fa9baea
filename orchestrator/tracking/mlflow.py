"""A run's events for an MLflow server: one MLflow run for the run, and below it one for each trial.

Needs `pip install 'ensemble-orchestrator[mlflow]'`. What is sent is sent by a thread, so a slow server costs
the run nothing; a server that is lost costs the figures, never the run.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.config.base import fingerprint
from orchestrator.config.tracking import MlflowTracking
from orchestrator.errors import ClusterError, ConfigError, first_line
from orchestrator.progress import Event, Result, Training, Trials

_KEY = "orchestrator.key"
"""Tag of an MLflow run: what it stands for, so that it is found again."""
_PARENT = "mlflow.parentRunId"
_MOST_PARAMS = 100
"""In one request; the server refuses more."""
_LONGEST_VALUE = 500
_DRAIN_S = 60.0
"""Longest wait at the end for a server that is slow."""
_ENVIRONMENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}

log = logging.getLogger(__name__)

Params = Mapping[str, Any]
Point = tuple[str, float, int]
"""Name, value and step."""


class Mlflow:
    """Tells an MLflow server of a run. What was told before a restart is not told again."""

    def __init__(self, settings: MlflowTracking, name: str, params: dict[str, Any]) -> None:
        """Connect, and find the MLflow run of an earlier attempt with the same settings, or begin one.

        Args:
            settings: which server and experiment.
            name: of the run.
            params: the run's settings as plain values.

        Raises:
            ConfigError: MLflow is not installed.
            ClusterError: the server does not answer, or refuses.
        """
        self._api = _Api(settings)
        try:
            self._run = self._api.begin(name, fingerprint([name, params]), _flat(params), parent=None)
        except Exception as error:
            # Whatever the client raises; a deleted experiment is found by its name, and takes no runs.
            raise ClusterError(
                f"the MLflow server takes no run in experiment '{settings.experiment}'",
                f"{settings.uri}: {first_line(error)}",
                "if it was deleted, restore it, or name another by tracking.experiment",
            ) from error
        self._trials: dict[str, str] = {}
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._broken = False
        self._thread = threading.Thread(target=self._send, name="mlflow", daemon=True)
        self._thread.start()

    def show(self, event: Event) -> None:
        """Take the figures of an event."""
        fact = event.fact
        if isinstance(fact, Training) and fact.epoch and fact.loss is not None and event.stage == "train":
            figures = {"loss": fact.loss, fact.metric_name: fact.metric}
            known = {name: value for name, value in figures.items() if value is not None}
            self._log(
                self._run, [(f"{fact.name}/{name}", value, fact.epoch) for name, value in known.items()]
            )
        elif isinstance(fact, Trials) and fact.result is not None:
            stage, result, metric = event.stage, fact.result, fact.metric_name
            self._work.put(lambda: self._trial(stage, metric, result))
            if result.number >= 0 and fact.hypervolume is not None:
                self._log(self._run, [(f"{stage}/hypervolume", fact.hypervolume, result.number + 1)])

    def close(self) -> None:
        """Nothing: what waits is sent while the run goes on."""

    def finish(self, status: str, files: Iterable[tuple[Path, str]] = ()) -> None:
        """Send what waits and files by the folder that they are to be in; the last call.

        Args:
            status: MLflow's word: `FINISHED`, `FAILED` or `KILLED`.
            files: those that do not exist are left out.
        """
        for file, folder in files:
            if file.exists():
                self._work.put(partial(self._api.upload, self._run, file, folder))
        self._work.put(lambda: self._api.end(self._run, status))
        self._work.put(None)
        self._thread.join(_DRAIN_S)
        if self._thread.is_alive():
            log.warning("MLflow took more than %.0f s: some figures are missing there", _DRAIN_S)

    def _log(self, run: str, points: list[Point]) -> None:
        self._work.put(lambda: self._api.log(run, points))

    def _trial(self, stage: str, metric: str, result: Result) -> None:
        key = f"{stage}/{result.name}"
        params = {**result.config, "number": result.number + 1 if result.number >= 0 else result.number}
        if key not in self._trials:
            self._trials[key] = self._api.begin(
                result.name, fingerprint([self._run, key, params]), _flat(params), parent=self._run
            )
        figures = {
            metric: result.metric,
            "drop": result.drop,
            "latency_ms": result.latency_ms,
            "bytes": float(result.bytes),
        }
        self._api.log(self._trials[key], [(name, value, 0) for name, value in figures.items()])
        self._api.end(self._trials[key], "FINISHED")

    def _send(self) -> None:
        while (task := self._work.get()) is not None:
            if self._broken:
                continue
            try:
                task()
            except Exception as error:
                # Whatever the client raises (its own errors, those of HTTP): the run goes on without it.
                self._broken = True
                log.warning("no more figures for MLflow: %s", first_line(error))


class _Api:
    """The few calls to the server; each leaves alone what is there."""

    def __init__(self, settings: MlflowTracking) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param, RunTag
        except ImportError as error:
            raise ConfigError(
                "tracking needs MLflow", error, "pip install 'ensemble-orchestrator[mlflow]'"
            ) from error
        self._metric, self._param, self._tag = Metric, Param, RunTag
        self._known: dict[str, set[tuple[str, int]]] = {}
        try:
            self._client = MlflowClient(tracking_uri=settings.uri)
            found = self._client.get_experiment_by_name(settings.experiment)
            self._experiment: str = (
                self._client.create_experiment(settings.experiment) if found is None else found.experiment_id
            )
        except Exception as error:
            raise ClusterError(
                "the MLflow server does not answer as it should",
                f"{settings.uri}: {first_line(error)}",
                "start it, or take 'tracking' out of the run file",
            ) from error

    def begin(self, name: str, key: str, params: Mapping[str, str], *, parent: str | None) -> str:
        """The id of the MLflow run that stands for `key`, begun now if there is none."""
        found = self._client.search_runs([self._experiment], f"tags.`{_KEY}` = '{key}'", max_results=1)
        if found:
            run: str = found[0].info.run_id
            self._known[run] = {
                (metric, point.step)
                for metric in found[0].data.metrics
                for point in self._client.get_metric_history(run, metric)
            }
            if found[0].info.status != "RUNNING" and parent is None:
                self._client.update_run(run, status="RUNNING")
            return run
        tags = {_KEY: key} | ({} if parent is None else {_PARENT: parent})
        run = self._client.create_run(self._experiment, tags=tags, run_name=name).info.run_id
        entries = [self._param(name, value) for name, value in params.items()]
        for place in range(0, len(entries), _MOST_PARAMS):
            self._client.log_batch(run, params=entries[place : place + _MOST_PARAMS])
        self._known[run] = set()
        return run

    def log(self, run: str, points: Iterable[Point]) -> None:
        """Send figures that the server does not have."""
        known, now = self._known[run], int(time.time() * 1000)
        new = [point for point in points if (_name(point[0]), point[2]) not in known]
        if new:
            metrics = [self._metric(_name(name), float(value), now, step) for name, value, step in new]
            self._client.log_batch(run, metrics=metrics)
            known |= {(_name(name), step) for name, _, step in new}

    def upload(self, run: str, file: Path, folder: str) -> None:
        """Send a file; one of its name is overwritten."""
        self._client.log_artifact(run, str(file), folder or None)

    def end(self, run: str, status: str) -> None:
        """Say how it ended (`set_terminated` would print to standard output)."""
        self._client.update_run(run, status=status)


def _flat(values: Params, path: str = "") -> dict[str, str]:
    """Nested plain values by dotted names, lists as JSON, all as texts that a server takes."""
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            found |= _flat(value, name)
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            found[_name(name)] = text[:_LONGEST_VALUE]
    return found


def _name(text: str) -> str:
    """With the letters that MLflow allows in names."""
    return re.sub(r"[^\w\-. :/]", "_", text)[:250]
