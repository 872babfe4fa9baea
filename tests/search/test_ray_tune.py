"""The search through Tune with toy trials: equal suggestions whatever ends first, failures, a restart."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import ray

from orchestrator.config.search import SearchSettings
from orchestrator.errors import ResourceError, SearchError
from orchestrator.search.ledger import untimed
from orchestrator.search.objectives import TrialRow
from tests.search.harness import Harness

pytestmark = pytest.mark.ray


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


@pytest.mark.slow
def test_equal_searches_failures_and_restart(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One long test: each search through Tune costs seconds."""
    first = Harness(tmp_path / "one")
    rows = first.run()
    assert [row.number for row in rows] == list(range(12))
    by_name = {row.name: row for row in rows}
    # A trial that raises is a failed row with its reason; one whose process died once is tried again.
    assert by_name["int8_dynamic"].status == "failed"
    assert "no linear layer is left" in by_name["int8_dynamic"].reason
    assert by_name["int8_static"].ok
    assert by_name["fp32"].latency_ms == 8.0
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
    assert list(map(untimed, Harness(tmp_path / "two").run())) == list(map(untimed, rows))

    # Again over what is stored: no trial but the failed one runs.
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "one").glob("*.started")}
    again = Harness(tmp_path / "one")
    assert list(map(untimed, again.run())) == list(map(untimed, rows))
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
