"""Searches over made-up trials, with the real searcher and the real store, for `benchmarks.search`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.search_trials import key_of, length_s, sleep_and_keep
from orchestrator.config.base import fingerprint
from orchestrator.config.measure import Metric
from orchestrator.config.search import SearchSettings
from orchestrator.search.batches import BatchSearch, Measure, Trainable
from orchestrator.search.objectives import TrialRow
from orchestrator.search.outcome import Outcome
from orchestrator.search.ray_search import DRIVERS
from orchestrator.search.space import Config
from orchestrator.search.study import BatchStudy, Suggestion
from orchestrator.search.trial import TrialJob, row_of
from orchestrator.store.store import Store

SPACE: dict[str, Any] = {
    "plan": [
        {"kind": "prune_channels", "amount": {"range": [0.05, 0.95]}},
        {"choice": [None, {"kind": "bf16"}, {"kind": "int8_static"}, {"kind": "int8_dynamic"}]},
    ]
}
PARENT_MS = 10.0
SPEED = {"fp32": 1.0, "bf16": 3.0, "int8_static": 4.0, "int8_dynamic": 1.5}

Ends = list[tuple[float, float]]
"""Of every trial that ran: when the driver knew that it had ended, and how long it slept."""


class TimedStudy(BatchStudy):
    """Counts the seconds in the sampler."""

    seconds = 0.0

    def ask(self) -> list[Suggestion]:
        """As in a study."""
        with self._timed():
            return super().ask()

    def tell(self, rows: Sequence[TrialRow]) -> None:
        """As in a study."""
        with self._timed():
            super().tell(rows)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started


def made_up(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Latencies that nobody measured, the same for the same config."""
    return [_measured(row) for row in rows]


class Study:
    """A search whose trials keep made-up outcomes."""

    def __init__(
        self, folder: Path, settings: SearchSettings, *, spread: float = 0.0, measure: Measure = made_up
    ) -> None:
        """Begin in a folder, or go on there."""
        self.settings, self.store = settings, Store(folder / "store")
        self.study = TimedStudy(settings, 0)
        self.ended: Ends = []
        self._folder, self._spread = folder, spread
        job = TrialJob(
            search=settings,
            parent="0" * 64,
            store=self.store.location,
            data_folder="none",
            data_digest="none",
            metric=Metric(),
            seed=0,
        )
        self.search = BatchSearch(
            self.study,
            to_row=lambda suggestion, outcome: self._row(suggestion, outcome, job),
            lookup=self._lookup,
            measure=measure,
            on_event=self._event,
            ahead=int(settings.overlap),
        )

    def run(
        self, driver: str, each_s: float, workers: int = 0, trainable: Trainable = sleep_and_keep
    ) -> list[TrialRow]:
        """All trials' rows; the first trials of `workers` processes begin together."""
        shared = {"store": self.store.location, "each_s": each_s, "spread": self._spread}
        shared |= gate(self._folder, workers)
        self._each_s = each_s
        DRIVERS[driver](self.search, trainable, shared, self.settings, storage=self._folder / "tune")
        return self.search.rows

    def _row(self, suggestion: Suggestion, outcome: Outcome, job: TrialJob) -> TrialRow:
        return row_of(suggestion.number, suggestion.config, outcome, job)

    def _lookup(self, config: Config) -> Outcome | None:
        text = self.store.stage_result(key_of(config))
        return None if text is None else Outcome.model_validate_json(text)

    def _event(self, row: TrialRow) -> None:
        if row.status != "ok":
            self.ended.append((time.perf_counter(), length_s(row.config, self._each_s, self._spread)))


def gate(folder: Path, workers: int) -> Mapping[str, Any]:
    """What `search_trials._together` needs."""
    (folder / "gate").mkdir(parents=True, exist_ok=True)
    return {"gate": str(folder / "gate"), "workers": workers}


def _measured(row: TrialRow) -> TrialRow:
    ratio = SPEED[str(row.config["precision"])] / (1 - float(row.config["prune_channels.amount"])) ** 0.7
    ratio *= 1 + int(fingerprint(dict(row.config))[:4], 16) / 2**20
    latency = PARENT_MS / ratio
    return row.measured(latency, (0.98 * latency, 1.02 * latency), ratio, (0.98 * ratio, 1.02 * ratio))
