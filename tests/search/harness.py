"""A search over toy trials, whatever drives them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from orchestrator.config.base import fingerprint
from orchestrator.config.search import SearchSettings
from orchestrator.search.batches import BatchSearch, Driver
from orchestrator.search.ledger import untimed
from orchestrator.search.objectives import TrialRow
from orchestrator.search.outcome import Outcome
from orchestrator.search.ray_tune import drive
from orchestrator.search.space import Config, name_of
from orchestrator.search.study import BatchStudy, Suggestion
from tests.search.spaces import amount_of
from tests.search.toy import toy_trial

SETTINGS = SearchSettings(trials=12, batch=4)
SEED = 7
SPEED = {"fp32": 1.0, "bf16": 4.0, "int8_static": 3.0, "int8_dynamic": 1.5}


class Harness:
    """A search over `toy_trial` in one folder."""

    def __init__(self, folder: Path, settings: SearchSettings = SETTINGS, driver: Driver = drive) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.settings, self.driver = folder, settings, driver
        self.events: list[TrialRow] = []
        self.measured_while_running = False
        self.search = BatchSearch(
            BatchStudy(settings, SEED),
            to_row=self.to_row,
            lookup=self.lookup,
            measure=self.measure,
            on_event=self.events.append,
        )

    def to_row(self, suggestion: Suggestion, outcome: Outcome) -> TrialRow:
        name = name_of(suggestion.config, self.settings)
        row = TrialRow(suggestion.number, name, "aoti", suggestion.config, outcome.digest, drop=outcome.drop)
        return row.failed(outcome.failure) if outcome.failure else row

    def lookup(self, config: Config) -> Outcome | None:
        file = self.folder / f"{fingerprint(config)}.json"
        return Outcome.model_validate(json.loads(file.read_text())) if file.exists() else None

    def measure(self, rows: Sequence[TrialRow]) -> list[TrialRow]:
        self.measured_while_running |= bool(self.search._running)
        found = []
        for row in rows:
            latency = 8 * (1 - amount_of(row.config)) / SPEED[str(row.config["precision"])]
            found.append(row.measured(latency, (latency, latency), 8 / latency, (8 / latency, 8 / latency)))
        return found

    def run(self, **shared: str) -> list[TrialRow]:
        self.search.advance()
        every = {"folder": str(self.folder), **shared}
        self.driver(self.search, toy_trial, every, self.settings, storage=self.folder / "tune")
        return [untimed(row) for row in self.search.rows]
