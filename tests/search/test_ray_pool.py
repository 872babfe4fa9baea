"""The search on the pool of actors: the same rows as through Tune, deaths, an interrupt."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from orchestrator.config.search import SearchSettings
from orchestrator.errors import ResourceError
from orchestrator.search import ray_pool
from orchestrator.search.ledger import untimed
from tests.search.harness import SETTINGS, Harness

pytestmark = pytest.mark.ray

CPUS = 2


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(
        address="local",
        num_cpus=CPUS,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def harness(folder: Path, settings: SearchSettings = SETTINGS) -> Harness:
    return Harness(folder, settings, ray_pool.drive)


def processes(folder: Path) -> list[int]:
    """Of every trial that began, in order for one precision."""
    return [int(line) for file in sorted(folder.glob("*.pids")) for line in file.read_text().split()]


def eventually(holds: Callable[[], bool], within_s: float = 20) -> bool:
    end = time.monotonic() + within_s
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    return holds()


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_the_same_rows_as_through_tune(tmp_path: Path) -> None:
    pooled = harness(tmp_path / "pool")
    rows = pooled.run()
    assert [row.number for row in rows] == list(range(12))
    by_name = {row.name: row for row in rows}
    # A trial that raises is a failed row with its reason; one whose process died once is tried again.
    assert by_name["int8_dynamic"].reason == "ValueError: no linear layer is left"
    assert by_name["int8_static"].ok
    assert not pooled.measured_while_running
    ended = [row.number for row in pooled.events if row.status in ("evaluated", "failed")]
    assert sorted(ended) == list(range(12))
    # Actors are kept: one that failed is replaced, and no other.
    assert len(set(processes(tmp_path / "pool"))) <= CPUS + 3
    assert list(map(untimed, Harness(tmp_path / "tune").run())) == list(map(untimed, rows))
    # Again over what is stored: no trial but the failed one runs.
    before = len(processes(tmp_path / "pool"))
    assert list(map(untimed, harness(tmp_path / "pool").run())) == list(map(untimed, rows))
    assert len(processes(tmp_path / "pool")) == before + 2


def test_a_trial_whose_process_dies_is_tried_once_more_and_then_failed(tmp_path: Path) -> None:
    search = harness(tmp_path, SearchSettings(trials=6, batch=6))
    rows = search.run(dies="fp32", dies_after="bf16")
    dead = [row for row in rows if row.config["precision"] == "fp32"]
    assert dead
    assert all("process has died" in row.reason for row in dead)
    tries = (tmp_path / "fp32.pids").read_text().split()
    assert len(tries) == len(set(tries)) == 2 * len(dead)
    # What was finished before its process died is not lost.
    assert all(row.ok for row in rows if row.config["precision"] == "bf16")


@pytest.mark.slow
def test_ctrl_c_leaves_no_actor(tmp_path: Path) -> None:
    search = harness(tmp_path, SearchSettings(trials=200, batch=100))

    def interrupt() -> None:
        if eventually(lambda: len(processes(tmp_path)) > CPUS):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        search.run()
    thread.join()
    assert eventually(lambda: ray.available_resources().get("CPU") == CPUS)
    assert eventually(lambda: not any(map(alive, processes(tmp_path))))


def test_an_impossible_request_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"lower search\.cpus"):
        harness(tmp_path, SearchSettings(cpus=64)).run()
