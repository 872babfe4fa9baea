"""Recoveries whose process is killed, and trials that are stopped early, through Ray."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
from optuna.trial import TrialState

from orchestrator.config.search import Halving, SearchSettings
from orchestrator.errors import CorruptArtifactError
from orchestrator.measure.turns import Turns
from orchestrator.search import ray_search, trial
from orchestrator.search.batches import Measure
from orchestrator.search.ledger import Ledger, untimed
from orchestrator.search.objectives import TrialRow
from orchestrator.search.ray_search import Searched, run_search
from orchestrator.search.study import BatchStudy
from orchestrator.search.trial import TrialJob
from orchestrator.store.leases import Lease
from orchestrator.store.store import Store
from orchestrator.training.checkpoint import Checkpoint
from orchestrator.training.state import EpochReport
from tests.search.beside import beside
from tests.search.jobs import job_over_a_tiny_model
from tests.search.spaces import small

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EPOCHS = 30
DRIVERS = ("pool", "tune")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrialJob:
    """With a store that no trial has written to."""
    return job_over_a_tiny_model(tmp_path_factory.mktemp("real"), SearchSettings(arms=False))


def copy(job: TrialJob, folder: Path, epochs: int, **settings: object) -> TrialJob:
    """The job in a store of its own."""
    training = {"epochs": epochs, "batch_size": 8, "lr": {"choice": [1e-5, 1e-4, 0.1, 0.2]}}
    space = small((0.25,), ("l2", "l1", "lamp"), ("fp32",), whole=False, training=training)
    search = SearchSettings.model_validate(
        {"space": space.plain(), "executions": ["lowered", "eager"], "arms": False, **settings}
    )
    shutil.copytree(job.store, folder)
    return job.model_copy(update={"store": str(folder), "search": search})


def measured(rows: Sequence[TrialRow]) -> list[TrialRow]:
    return [row.measured(3.0 + row.number, (0.9, 1.1), 1.0, (0.9, 1.1)) for row in rows]


def searched(
    job: TrialJob, storage: Path, told: list[tuple[str, int]], measure: Measure = measured, **more: object
) -> Searched:
    (parent,) = measured([trial.parent_row(job, "teacher")])

    def on_epoch(name: str, report: EpochReport) -> None:
        told.append((name, report.epoch))

    return run_search(
        job,
        parent,
        measure=measure,
        on_event=lambda _: None,
        on_epoch=on_epoch,
        storage=storage,
        **more,  # type: ignore[arg-type]
    )


def kill_in_a_recovery(store: Store) -> int:
    """SIGKILL for the first process that has kept three epochs; how many it had."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        time.sleep(0.005)
        for key in {key.split("/")[1] for key in store.blobs.list("checkpoints")}:
            holder = Lease(store.blobs, f"stages/{key}").holder()
            try:
                state = Checkpoint(store, key).load()
            except CorruptArtifactError:
                continue
            if holder is not None and state is not None and state.epoch >= 3:
                os.kill(holder.pid, signal.SIGKILL)
                return state.epoch
    raise AssertionError("no recovery began")


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_killed_recovery_goes_on_in_another_process(job: TrialJob, tmp_path: Path, driver: str) -> None:
    mine = copy(job, tmp_path / "store", EPOCHS, trials=2, batch=2, driver=driver)
    store = Store(mine.store)
    told: list[tuple[str, int]] = []
    kept: list[int] = []
    with beside(lambda: kept.append(kill_in_a_recovery(store))):
        rows, _, _ = searched(mine, tmp_path, told)
    assert [row.status for row in rows] == ["ok", "ok"]
    resumed = []
    for row in rows:
        outcome = trial.known(store, mine, row.config)
        assert outcome is not None
        assert outcome.epochs == tuple(range(outcome.epochs[0], EPOCHS + 1))
        if outcome.epochs[0] > 1:
            resumed.append(outcome.epochs[0])
    # One process was killed, and the next one began where it had come to.
    assert len(resumed) == 1
    assert kept[0] < resumed[0] < EPOCHS
    # No epoch was told twice, and at most the one of the kill is missing.
    assert set(Counter(told).values()) == {1}
    epochs = defaultdict(list)
    for name, epoch in told:
        epochs[name].append(epoch)
    assert all(found == sorted(found) and len(found) >= EPOCHS - 1 for found in epochs.values())
    # Undisturbed, elsewhere: the same variants.
    other = copy(job, tmp_path / "undisturbed", EPOCHS)
    assert [trial.evaluate(other, row.config).digest for row in rows] == [row.digest for row in rows]


def progress(store: Store) -> dict[str, int]:
    """Epochs that unfinished trainings have kept."""
    keys = {key.split("/")[1] for key in store.blobs.list("checkpoints")}
    states = {key: Checkpoint(store, key).load() for key in keys}
    return {key: state.epoch for key, state in states.items() if state is not None}


@pytest.mark.parametrize("driver", DRIVERS)
def test_trials_of_the_next_batch_rest_while_one_is_measured(
    job: TrialJob, tmp_path: Path, driver: str
) -> None:
    mine = copy(job, tmp_path / "store", EPOCHS, trials=6, batch=2, overlap=True, driver=driver)
    store = Store(mine.store)
    seen: list[tuple[dict[str, int], dict[str, int]]] = []

    def measure(rows: Sequence[TrialRow]) -> list[TrialRow]:
        with Turns(mine.store).alone():
            before = progress(store)
            time.sleep(0.5)
            seen.append((before, progress(store)))
        return measured(rows)

    rows, _, _ = searched(mine, tmp_path, [], measure)
    assert [row.status for row in rows] == ["ok"] * 6
    assert all(before == after for before, after in seen)
    assert any(before for before, _ in seen), "a trial was at work"
    # Resting changes nothing: what they make is what they would make undisturbed.
    other = copy(job, tmp_path / "undisturbed", EPOCHS)
    for row in rows[2:4]:
        assert trial.evaluate(other, row.config).digest == row.digest


@pytest.mark.parametrize("driver", DRIVERS)
def test_stopped_trials_are_told_as_pruned_and_not_run_again(
    job: TrialJob, tmp_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samplers: list[BatchStudy] = []

    class Kept(BatchStudy):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            samplers.append(self)

    monkeypatch.setattr(ray_search, "BatchStudy", Kept)
    rule = Halving(factor=2).plain()
    mine = copy(job, tmp_path / "store", 3, trials=8, batch=4, driver=driver, early_stop=rule)
    rows, _, _ = searched(mine, tmp_path, [])
    stopped = {row.number for row in rows if row.status == "stopped"}
    assert stopped
    assert {row.status for row in rows} == {"ok", "stopped"}
    assert pruned(samplers[0].trials) == len(stopped)
    assert all(row.epochs < 3 and row.reason for row in rows if row.number in stopped)
    assert Ledger(Store(mine.store), trial.study_settings(mine)).rows() == rows
    # Again: nothing runs, so no cluster is asked for.
    told: list[tuple[str, int]] = []
    again, _, _ = searched(mine, tmp_path, told, connect=lambda: pytest.fail("a trial ran again"))
    assert [untimed(row) for row in again] == [untimed(row) for row in rows]
    assert not told
    assert pruned(samplers[1].trials) == len(stopped)


def test_a_population_is_the_same_whatever_drives_it(job: TrialJob, tmp_path: Path) -> None:
    training = {
        "epochs": 1,
        "batch_size": 32,
        "schedule": "constant",
        "lr": {"range": [1e-4, 0.2], "log": True},
    }
    space = {"plan": [{"kind": "prune_channels", "amount": 0.5}, {"kind": "recover", "training": training}]}
    found = []
    for driver in DRIVERS:
        how = {"space": space, "sampler": {"kind": "pbt"}, "driver": driver, "trials": 9, "batch": 3}
        mine, told = copy(job, tmp_path / driver, 1, **how), list[tuple[str, int]]()
        rows, *_ = searched(mine, tmp_path, told)
        assert [row.status for row in rows] == ["ok"] * 9
        assert sorted(epoch for _, epoch in told) == [0] * 3 + [1] * 3 + [2] * 3
        found.append([untimed(row) for row in rows])
    assert found[0] == found[1]


def pruned(trials: Sequence[optuna.trial.FrozenTrial]) -> int:
    return sum(one.state == TrialState.PRUNED for one in trials)
