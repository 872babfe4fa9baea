"""Trials, nodes, drivers and the store fail while a search runs: nothing that ended is lost or repeated."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.config.base import fingerprint
from orchestrator.config.measure import Metric
from orchestrator.config.search import SearchSettings
from orchestrator.errors import ConfigError, StoreError
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.searching import claim_study
from orchestrator.search.ledger import untimed
from orchestrator.search.objectives import TrialRow, front_of
from orchestrator.search.trial import TrialJob
from orchestrator.store import local
from orchestrator.store.store import Store
from tests.search.beside import beside
from tests.search.faulty import HANG, READ_ONLY, Note, guarded, notes, repeated, starts
from tests.search.nodes import CORES, GIB, Nodes, nodes
from tests.search.study_driver import (
    POINTS,
    Moment,
    Study,
    rows_of,
    run_driver,
    settings_of,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.cluster]

TRIALS, MORE, KILLS = 40, 46, 20
SHORT = 12
DRIVERS = ("pool", "tune")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes() as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[TrialRow]]:
    """The first rows of a study that nobody disturbed, one trial after the other and without Ray."""
    rows = Study(tmp_path_factory.mktemp("undisturbed") / "study", settings_of(MORE)).alone()
    assert len(rows) == MORE
    assert {row.status for row in rows} == {"ok", "failed"}
    return lambda count: timeless(rows[:count])


def timeless(rows: Sequence[TrialRow]) -> list[TrialRow]:
    return [untimed(row) for row in rows]


def first(folder: Path, wanted: Callable[[Note], bool]) -> Note:
    """The first such line of the log, once it is there."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for line in notes(folder):
            if wanted(line):
                return line
        time.sleep(0.02)
    raise AssertionError("it never came")


def ended(folder: Path) -> set[str]:
    """Trials that left their outcome, which a search looks at; a kill may come before the note of it."""
    return {file.stem for file in (folder / "outcomes").glob("*.json")}


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_killed_trial_is_tried_again_and_no_other(
    undisturbed: Callable[[int], list[TrialRow]], tmp_path: Path, driver: str
) -> None:
    expected = undisturbed(SHORT)
    study = Study(tmp_path / "study", settings_of(SHORT, driver=driver))
    victim = fingerprint(expected[5].config)
    (study.folder / HANG).write_text(victim)

    def kill() -> None:
        os.kill(first(study.folder, lambda line: line.key == victim).process, signal.SIGKILL)

    with beside(kill):
        rows = study.run()
    assert timeless(rows) == expected
    assert timeless(study.ledger.rows()) == expected
    begun = starts(study.folder)
    assert begun.pop(victim) == 2
    assert set(begun.values()) == {1}


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_store_that_becomes_read_only(
    undisturbed: Callable[[int], list[TrialRow]],
    tmp_path: Path,
    driver: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "study"
    settings = settings_of(SHORT, driver=driver)
    told: list[TrialRow] = []

    def on_event(row: TrialRow) -> None:
        told.append(row)
        if len(told) == 9:
            (folder / READ_ONLY).touch()

    study = Study(folder, settings, on_event)
    monkeypatch.setattr(local, "_write_synced", guarded(folder))
    with pytest.raises(StoreError) as caught:
        study.run()
    sentence = str(caught.value)
    assert "the file system is read-only" in sentence
    assert "make it writable and run again: it continues" in sentence
    assert "\n" not in sentence
    assert not [row for row in told if "read-only" in row.reason], "no trial is to blame"
    kept = ended(folder)
    assert kept
    (folder / READ_ONLY).unlink()
    again = Study(folder, settings)
    assert timeless(again.run()) == undisturbed(SHORT)
    assert timeless(again.ledger.rows()) == undisturbed(SHORT)
    assert not repeated(folder)
    assert all(starts(folder)[key] == 1 for key in kept)


def killed_twenty_times(cluster: Nodes, folder: Path, settings: SearchSettings) -> list[TrialRow]:
    """The same command each time, on a cluster that lives on; two kills a batch. What it has in the end."""
    chance = random.Random(20)
    kinds = [chance.choice(POINTS) for _ in range(KILLS - len(POINTS))] + list(POINTS)
    chance.shuffle(kinds)
    batches = TRIALS // settings.batch
    for number, point in enumerate(kinds):
        delay = chance.choice((0.0, chance.uniform(0, 0.15)))
        moment = Moment(point, number * (batches - 1) // KILLS, delay)
        assert run_driver(folder, settings, cluster.address, moment) == -signal.SIGKILL, moment
        assert not repeated(folder), moment
    assert run_driver(folder, settings, cluster.address) == 0
    begun = starts(folder)
    assert len(begun) == len(ended(folder)) == TRIALS
    # A kill costs at most the trials that ran.
    assert sum(begun.values()) - TRIALS <= KILLS * settings.batch
    return rows_of(folder)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_driver_that_is_killed_twenty_times(
    cluster: Nodes, undisturbed: Callable[[int], list[TrialRow]], tmp_path: Path, driver: str
) -> None:
    # Two processes, one a node, since each driver starts its own.
    folder, settings = tmp_path / "study", settings_of(TRIALS, cpus=CORES, driver=driver)
    rows = killed_twenty_times(cluster, folder, settings)
    assert timeless(rows) == undisturbed(TRIALS)
    measured = [row for row in rows if row.ok]
    assert timeless(front_of(measured)) == timeless(front_of([r for r in undisturbed(TRIALS) if r.ok]))
    study = Study(folder, settings)
    assert study.ledger.rows() == rows
    _extended(cluster, undisturbed, folder, rows, driver)


@pytest.mark.timeout(1200)
def test_a_driver_of_batches_that_overlap_is_killed_twenty_times(cluster: Nodes, tmp_path: Path) -> None:
    settings = settings_of(TRIALS, cpus=CORES, siblings=2, overlap=True)
    rows = killed_twenty_times(cluster, tmp_path / "study", settings)
    assert timeless(rows) == timeless(Study(tmp_path / "alone", settings).alone())
    assert Study(tmp_path / "study", settings).ledger.rows() == rows


def _extended(
    cluster: Nodes,
    undisturbed: Callable[[int], list[TrialRow]],
    folder: Path,
    rows: list[TrialRow],
    driver: str,
) -> None:
    """With more trials, the last batch not full, the same study goes on."""
    before = starts(folder)
    settings = settings_of(MORE, cpus=CORES, driver=driver)
    assert run_driver(folder, settings, cluster.address) == 0
    more = rows_of(folder)
    assert more[:TRIALS] == rows
    assert timeless(more) == undisturbed(MORE)
    assert Study(folder, settings).ledger.rows() == more
    now = starts(folder)
    assert before.items() <= now.items()
    assert len(now) == MORE


def test_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run = cast(
        Run, SimpleNamespace(config=SimpleNamespace(name="mine"), store=store, folder=tmp_path / "mine")
    )

    def job(**settings: Any) -> TrialJob:
        return TrialJob(
            search=SearchSettings(**settings),
            parent="ab" * 32,
            store=str(store.root),
            data_folder=str(tmp_path),
            data_digest="cd" * 32,
            metric=Metric(),
            seed=0,
        )

    claim_study(run, "study", job(), False)
    # How many trials there are, and how and where they run, is not what is searched.
    claim_study(run, "study", job(trials=99, driver="pool", memory_bytes=GIB, labels={"zone": "a"}), False)
    with pytest.raises(ConfigError, match=r"other settings: search\.sampler: 'tpe' -> 'gp'\. take another"):
        claim_study(run, "study", job(sampler="gp"), False)
    claim_study(run, "study", job(sampler="gp"), True)
    claim_study(run, "study", job(sampler="gp"), False)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_node_dies(
    cluster: Nodes, undisturbed: Callable[[int], list[TrialRow]], tmp_path: Path, driver: str
) -> None:
    """The trials that ran there are tried again elsewhere. Last, since another node takes its place."""
    expected = undisturbed(SHORT + 8)
    study = Study(tmp_path / "study", settings_of(len(expected), driver=driver))
    victim = fingerprint(expected[5].config)
    (study.folder / HANG).write_text(victim)

    def kill() -> None:
        cluster.kill(first(study.folder, lambda line: line.key == victim).node)

    try:
        with beside(kill):
            rows = study.run()
    finally:
        cluster.restore()
    assert timeless(rows) == expected
    assert timeless(study.ledger.rows()) == expected
    assert not repeated(study.folder)
    begun = starts(study.folder)
    assert begun[victim] == 2
    assert len(begun) == len(expected)
    # On its cores at most two trials ran.
    assert sum(begun.values()) - len(expected) <= CORES
    before, after = (line.node for line in notes(study.folder) if (line.what, line.key) == ("begin", victim))
    assert before != after
