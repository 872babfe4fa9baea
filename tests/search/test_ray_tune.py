"""The search through Tune with toy trials: equal suggestions whatever ends first, failures, a restart."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import ray

from orchestrator.config.base import fingerprint
from orchestrator.config.search import SearchSettings
from orchestrator.errors import ResourceError, SearchError
from orchestrator.search.objectives import TrialRow
from orchestrator.search.ray_tune import BatchSearch, drive
from orchestrator.search.space import Config, name_of
from orchestrator.search.study import BatchStudy, Suggestion
from orchestrator.search.trial import Outcome
from tests.search.toy import toy_trial

pytestmark = pytest.mark.ray

SETTINGS = SearchSettings(trials=12, batch=4)
SPEED = {"fp32": 1.0, "bf16": 4.0, "int8_static": 3.0, "int8_dynamic": 1.5}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


class Harness:
    """A search over `toy_trial` in one folder."""

    def __init__(self, folder: Path, settings: SearchSettings = SETTINGS, seed: int = 7) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.settings = folder, settings
        self.events: list[TrialRow] = []
        self.measured_while_running = False
        self.search = BatchSearch(
            BatchStudy(settings, seed),
            to_row=self.to_row,
            lookup=self.lookup,
            measure=self.measure,
            on_event=self.events.append,
        )

    def to_row(self, suggestion: Suggestion, outcome: Outcome) -> TrialRow:
        name = name_of(suggestion.config)
        row = TrialRow(suggestion.number, name, "aoti", suggestion.config, outcome.digest, drop=outcome.drop)
        return row.failed(outcome.failure) if outcome.failure else row

    def lookup(self, config: Config) -> Outcome | None:
        file = self.folder / f"{fingerprint(config)}.json"
        return Outcome.model_validate(json.loads(file.read_text())) if file.exists() else None

    def measure(self, rows: Sequence[TrialRow]) -> list[TrialRow]:
        self.measured_while_running |= bool(self.search._running)
        found = []
        for row in rows:
            latency = 8 * (1 - float(row.config["amount"])) / SPEED[str(row.config["precision"])]
            found.append(row.measured(latency, (latency, latency), 8 / latency, (8 / latency, 8 / latency)))
        return found

    def run(self) -> list[TrialRow]:
        self.search.advance()
        drive(self.search, toy_trial, {"folder": str(self.folder)}, self.settings, self.folder / "tune")
        return self.search.rows


@pytest.mark.slow
def test_equal_searches_failures_and_restart(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One long test: each search through Tune costs seconds."""
    first = Harness(tmp_path / "one")
    rows = first.run()
    assert [row.number for row in rows] == list(range(12))
    by_name = {row.name: row for row in rows}
    # A trial that raises is a failed row with its reason; one whose process died once is tried again.
    assert by_name["whole-int8_dynamic"].status == "failed"
    assert "no linear layer is left" in by_name["whole-int8_dynamic"].reason
    assert by_name["whole-int8_static"].ok
    assert by_name["whole-fp32"].latency_ms == 8.0
    assert not first.measured_while_running
    # Every trial is reported when it ends, and every good one again when it is measured.
    ended = [row.number for row in first.events if row.status in ("evaluated", "failed")]
    assert sorted(ended) == list(range(12))
    assert [row.number for row in first.events if row.ok] == [row.number for row in rows if row.ok]
    # Tune's own files are gone, and it printed nothing.
    assert list((tmp_path / "one" / "tune").iterdir()) == []
    printed = capfd.readouterr()
    assert "rial" not in printed.out.replace("(raylet)", "")
    assert "rial" not in printed.err

    # Other sleeps, another folder: the same suggestions and results.
    assert Harness(tmp_path / "two").run() == rows

    # Again over what is stored: no trial but the failed one runs.
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "one").glob("*.started")}
    again = Harness(tmp_path / "one")
    assert again.run() == rows
    touched = [file for file, seen in before.items() if file.stat().st_mtime_ns != seen]
    assert len(touched) == 1


def test_an_impossible_request_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"lower search\.cpus"):
        Harness(tmp_path, SearchSettings(cpus=64)).run()
    with pytest.raises(ResourceError, match="GPU"):
        Harness(tmp_path, SearchSettings(gpus=1)).run()


def test_an_error_of_the_measurement_reaches_the_caller(tmp_path: Path) -> None:
    harness = Harness(tmp_path, SearchSettings(trials=3, batch=3))

    def broken(rows: Sequence[TrialRow]) -> list[TrialRow]:
        raise SearchError("the bench is gone", len(rows))

    harness.search._measure = broken
    with pytest.raises(SearchError, match="the bench is gone"):
        harness.run()
