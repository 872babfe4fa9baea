"""A study of toy trials with a real ledger, and a driver's process that dies at a given moment."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter

from orchestrator.cluster import connected
from orchestrator.config.base import canonical, fingerprint
from orchestrator.config.search import SearchSettings
from orchestrator.config.space import Config
from orchestrator.search.batches import BatchSearch, Work
from orchestrator.search.ledger import Ledger
from orchestrator.search.objectives import TrialRow
from orchestrator.search.outcome import Outcome
from orchestrator.search.ray_search import DRIVERS
from orchestrator.search.space import name_of
from orchestrator.search.study import BatchStudy, Suggestion
from orchestrator.store import local
from orchestrator.store.store import Store
from tests.search.faulty import faulty_trial
from tests.search.spaces import amount_of, small

SEED = 11
ROWS = "rows.json"
SPACE = small({"range": [0.05, 0.75], "step": 0.05}, ("l2", "l1", "lamp"), ("fp32", "bf16", "int8_static"))
Point = Literal["suggested", "measuring", "ledger", "between"]
POINTS: tuple[Point, ...] = ("suggested", "measuring", "ledger", "between")


class Moment(NamedTuple):
    """When a driver dies: so long after the first such point from the batch of that number on."""

    point: Point
    batch: int
    delay_s: float


def settings_of(trials: int, **more: Any) -> SearchSettings:
    return SearchSettings(trials=trials, **{"batch": 4, "space": SPACE, "driver": "pool", **more})


class Study:
    """Of one folder: outcomes, the log, and a store with the ledger."""

    def __init__(
        self,
        folder: Path,
        settings: SearchSettings,
        on_event: Callable[[TrialRow], None] = lambda _: None,
        passed: Callable[[str], None] = lambda _: None,
        work: Work = lambda _: 0,
        most_s: float = math.inf,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.settings, self.passed = folder, settings, passed
        what = {name: value for name, value in settings.plain().items() if name not in ("trials", "driver")}
        self.ledger = Ledger(Store(folder / "store"), what)
        self.sampler = BatchStudy(settings, SEED)
        self.search = BatchSearch(
            self.sampler,
            to_row=self._row,
            lookup=self._lookup,
            measure=self._measure,
            on_event=on_event,
            work=work,
            ledger=self.ledger,
            most_s=most_s,
            ahead=int(settings.overlap),
        )

    def run(self) -> list[TrialRow]:
        """By the driver of the settings, on the Ray that this process is connected to."""
        self.search.advance()
        shared = {"folder": str(self.folder)}
        storage = self.folder / "tune"
        DRIVERS[self.settings.driver](self.search, faulty_trial, shared, self.settings, storage=storage)
        return self.search.rows

    def alone(self) -> list[TrialRow]:
        """Without Ray, one trial after the other."""
        number = 0
        while (config := self.search.suggest(str(number))) is not None:
            faulty_trial({**config, "folder": str(self.folder)})
            self.search.on_trial_complete(str(number))
            number += 1
        return self.search.rows

    def _row(self, suggestion: Suggestion, outcome: Outcome) -> TrialRow:
        name = name_of(suggestion.config, self.settings)
        row = TrialRow(suggestion.number, name, "aoti", suggestion.config, outcome.digest, drop=outcome.drop)
        if outcome.stopped:
            return dataclasses.replace(
                row, status="stopped", epochs=outcome.epochs[-1], metric=outcome.metric
            )
        return row.failed(outcome.failure) if outcome.failure else row.limited(self.settings)

    def _lookup(self, config: Config) -> Outcome | None:
        file = self.folder / "outcomes" / f"{fingerprint(config)}.json"
        return Outcome.model_validate(json.loads(file.read_text())) if file.exists() else None

    def _measure(self, rows: Sequence[TrialRow]) -> list[TrialRow]:
        self.passed("measuring")
        time.sleep(0.01 * len(rows))
        found = []
        for row in rows:
            latency = 8 * (1.01 - amount_of(row.config)) / (1 + len(str(row.config["precision"])))
            found.append(row.measured(latency, (latency, latency), 8 / latency, (8 / latency, 8 / latency)))
        return found


def drive(folder: Path, settings: SearchSettings, address: str, moment: Moment | None) -> None:
    """What a driver's process does; leaves the rows in a file unless it dies before."""
    os.environ["RAY_ADDRESS"] = address
    killer = _Killer(moment)
    study = Study(folder, settings, passed=killer.passed)
    killer.watch(study)
    with connected():
        rows = study.run()
    (folder / ROWS).write_bytes(canonical([row.plain() for row in rows]))


def run_driver(folder: Path, settings: SearchSettings, address: str, moment: Moment | None = None) -> int:
    """`drive` in a process of its own; its exit code. A fork server has loaded what is slow to load."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=drive, args=(folder, settings, address, moment))
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"the driver hangs: {moment}")
    return process.exitcode


def rows_of(folder: Path) -> list[TrialRow]:
    return TypeAdapter(list[TrialRow]).validate_json((folder / ROWS).read_bytes())


class _Killer:
    """SIGKILL for this process at a moment."""

    def __init__(self, moment: Moment | None) -> None:
        self._moment, self._asked, self._armed = moment, 0, False

    def watch(self, study: Study) -> None:
        """Be told of a study's points."""
        ask, suggest, write = study.sampler.ask, study.search.suggest, local._write_synced

        def asked() -> list[Suggestion]:
            self.passed("between")
            self._asked += 1
            return ask()

        def suggested(trial_id: str) -> dict[str, Any] | None:
            config = suggest(trial_id)
            if config is not None:
                self.passed("suggested")
            return config

        def written(path: Path, data: bytes) -> None:
            write(path, data[: len(data) // 2])
            self.passed("ledger")
            path.unlink()
            write(path, data)

        study.sampler.ask = asked  # type: ignore[method-assign]
        study.search.suggest = suggested  # type: ignore[method-assign]
        local._write_synced = written

    def passed(self, point: str) -> None:
        """The process is at a point."""
        moment = self._moment
        if moment is None or self._armed or (point, True) != (moment.point, self._asked > moment.batch):
            return
        self._armed = True
        if moment.delay_s == 0:
            _die()
        timer = threading.Timer(moment.delay_s, _die)
        timer.daemon = True
        timer.start()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
