"""A search that is started again, without Ray: what was suggested and recorded stays."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.base import canonical, fingerprint
from orchestrator.errors import StoreError
from orchestrator.search.batches import NODE_DIED
from orchestrator.search.ledger import untimed
from orchestrator.search.objectives import TrialRow
from orchestrator.search.study import Suggestion
from orchestrator.store import local
from tests.search.faulty import READ_ONLY, faulty_trial, guarded, starts
from tests.search.spaces import amount_of, small
from tests.search.study_driver import Study, settings_of

SETTINGS = settings_of(20, sampler="tpe")
BROKEN = 2
"""Of the first trials, which TPE makes its first model from."""


def run(study: Study, broken: int | None = None, each: Callable[[], None] = lambda: None) -> Study:
    """Like `Study.alone`, but one trial fails; `each` is called where one has begun."""
    number = 0
    while (config := study.search.suggest(str(number))) is not None:
        each()
        if number == broken:
            study.search.fail(str(number), "the trial's process failed")
        else:
            faulty_trial({**config, "folder": str(study.folder)})
            study.search.on_trial_complete(str(number))
        number += 1
    return study


def ten_seconds(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Stops the search's clock; each call lets ten seconds pass."""
    now = [0.0]
    monkeypatch.setattr("orchestrator.search.batches.time.monotonic", lambda: now[0])

    def passes() -> None:
        now[0] += 10.0

    return passes


def test_a_trial_that_failed_is_tried_again_and_moves_no_other(tmp_path: Path) -> None:
    first = run(Study(tmp_path / "study", SETTINGS), BROKEN)
    assert first.search.rows[BROKEN].status == "failed"
    assert first.ledger.rows() == first.search.rows
    before = starts(first.folder)
    # Started again it works. The rows after it were suggested from its failure, and are kept.
    again = run(Study(tmp_path / "study", SETTINGS))
    assert again.search.rows[BROKEN].ok
    expected = list(first.search.rows)
    expected[BROKEN] = again.search.rows[BROKEN]
    assert again.search.rows == expected
    assert again.ledger.rows() == expected
    assert (starts(again.folder) - before).total() == 1
    third = run(Study(tmp_path / "study", SETTINGS))
    assert third.search.rows == third.ledger.rows() == expected
    assert starts(again.folder) - before == starts(third.folder) - before
    # Its failure was what later suggestions were made from: without it they are others.
    other = run(Study(tmp_path / "other", SETTINGS))
    assert [row.config for row in other.search.rows] != [row.config for row in expected]


def test_the_longest_trials_of_a_batch_run_first_which_changes_no_result(tmp_path: Path) -> None:
    settings = settings_of(12, batch=6, siblings=2)
    begun: list[Suggestion] = []

    def work(suggestion: Suggestion) -> float:
        return 0 if suggestion.shares else 1 + amount_of(suggestion.config)

    def suggested(study: Study) -> list[Suggestion]:
        """What runs of the first batch, or the next one, in this order."""
        found: list[Suggestion] = []
        running: list[str] = []
        while len(found) < 6:
            name = str(len(found))
            if (config := study.search.suggest(name)) is None:
                study.search.on_trial_complete(running.pop(0))
                continue
            faulty_trial({**config, "folder": str(study.folder)})
            found.append(study.search._running[name])
            running.append(name)
        for name in running:
            study.search.on_trial_complete(name)
        return found

    study = Study(tmp_path / "sorted", settings, work=work)
    for _ in range(2):
        begun = suggested(study)
        assert [work(one) for one in begun] == sorted(map(work, begun), reverse=True)
        assert [one.number for one in begun] != sorted(one.number for one in begun)
    assert [one.shares for one in begun[-2:]] == [True, True]
    study.search.advance()
    expected = Study(tmp_path / "as suggested", settings).alone()
    assert list(map(untimed, study.search.rows)) == list(map(untimed, expected))


PRUNED = small({"range": [0.05, 0.75]}, ("l2", "l1"), ("fp32", "bf16", "int8_static"), whole=False)
SHARING = settings_of(12, batch=6, siblings=3, space=PRUNED)


def test_what_shares_a_training_waits_until_it_is_done(tmp_path: Path) -> None:
    study = Study(tmp_path / "study", SHARING)
    running: list[str] = []
    trained, shared = set[str](), 0
    for number in range(100):
        # As many at once as there are; nothing to run means that all wait for what runs.
        if study.search.suggest(str(number)) is not None:
            running.append(str(number))
            own = study.search._running[str(number)]
            others = {one for name in running[:-1] for one in study.search._running[name].trainings}
            shared += own.shares
            assert trained.issuperset(own.trainings) or others.isdisjoint(own.trainings)
            continue
        if not running:
            break
        name = running.pop(0)
        ended = study.search._running[name]
        faulty_trial({**ended.config, "folder": str(study.folder)})
        study.search.on_trial_complete(name)
        outcome = study._lookup(ended.config)
        if outcome is not None and not outcome.failure:
            trained.update(ended.trainings)
    assert study.search.finished
    assert shared >= 6
    expected = Study(tmp_path / "one after the other", SHARING).alone()
    assert list(map(untimed, study.search.rows)) == list(map(untimed, expected))


STOPPED = {"stopped": True, "metric": 0.5, "curve": [0.4, 0.5], "epochs": [1, 2]}
FAILED = {"failure": "the loss is not finite", "untrained": True}


@pytest.mark.parametrize(("outcome", "status"), [(STOPPED, "stopped"), (FAILED, "failed")])
def test_who_shares_a_training_that_was_stopped_or_failed_ends_with_it(
    tmp_path: Path, outcome: dict[str, Any], status: str
) -> None:
    def searched() -> list[TrialRow]:
        """One after the other; the first training of all does not come to its end."""
        study, lost, number = Study(tmp_path / "study", SHARING), tuple[str, ...](), 0
        while (config := study.search.suggest(str(number))) is not None:
            trainings = study.search._running[str(number)].trainings
            lost = lost or trainings
            if trainings == lost:
                path = study.folder / "outcomes" / f"{fingerprint(config)}.json"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(canonical(outcome))
                ran.append(trainings)
            else:
                faulty_trial({**config, "folder": str(study.folder)})
            study.search.on_trial_complete(str(number))
            number += 1
        return study.search.rows

    ran: list[tuple[str, ...]] = []
    first = searched()
    assert len(ran) == 1, "its training ran once"
    ended = [row for row in first if amount_of(row.config) == amount_of(first[0].config)]
    assert len(ended) > 1
    assert {row.status for row in ended} == {status}
    if status == "stopped":
        assert {(row.epochs, row.metric) for row in ended} == {(2, 0.5)}
    else:
        assert {row.reason for row in ended} == {"the loss is not finite"}
    assert searched() == first
    assert len(ran) == 1


def test_a_stopped_trial_stays_stopped_when_another_study_trains_it(tmp_path: Path) -> None:
    study = Study(tmp_path / "study", SHARING)
    config = study.search.suggest("0")
    assert config is not None
    path = study.folder / "outcomes" / f"{fingerprint(config)}.json"
    path.parent.mkdir()
    path.write_bytes(canonical(STOPPED))
    study.search.on_trial_complete("0")
    first = run(study).search.rows
    stopped = [row for row in first if row.status == "stopped"]
    assert len(stopped) > 1
    for row in stopped:
        faulty_trial({**row.config, "folder": str(study.folder)})
    assert run(Study(tmp_path / "study", SHARING)).search.rows == first


def by_chance(
    study: Study, source: random.Random, workers: int = 3, most: int = 1000
) -> list[tuple[int, int]]:
    """Trials end in an order of chance; each that begins, and how many rows are measured then."""
    running: list[str] = []
    begun: list[tuple[int, int]] = []
    for number in range(most):
        if len(running) < workers and (config := study.search.suggest(str(number))) is not None:
            running.append(str(number))
            begun.append((study.search._running[str(number)].number, len(study.search.rows)))
            faulty_trial({**config, "folder": str(study.folder)})
            continue
        if not running:
            break
        study.search.on_trial_complete(running.pop(source.randrange(len(running))))
    return begun


OVERLAPPING = settings_of(18, batch=6, siblings=3, space=PRUNED, overlap=True)


def test_batches_that_overlap_leave_no_worker_idle_and_repeat_in_any_order(tmp_path: Path) -> None:
    expected = list(map(untimed, Study(tmp_path / "one after the other", OVERLAPPING).alone()))
    assert [row.number for row in expected] == list(range(18))
    for seed in range(2):
        study = Study(tmp_path / f"{seed}", OVERLAPPING)
        begun = by_chance(study, random.Random(seed))
        assert list(map(untimed, study.search.rows)) == expected
        # A batch of 6 was begun before the one before it was measured, none before the one before that.
        assert any(number // 6 > rows // 6 for number, rows in begun)
        assert all(number // 6 <= rows // 6 + 1 for number, rows in begun)
    whole = {
        row.name
        for row in Study(tmp_path / "whole", settings_of(24, batch=6, siblings=3, space=PRUNED)).alone()
    }
    assert whole != {row.name for row in expected}, "suggested without the results of the last batch"


@pytest.mark.parametrize("most", [4, 11, 16])
def test_a_search_of_batches_that_overlap_goes_on_after_its_end(tmp_path: Path, most: int) -> None:
    expected = list(map(untimed, Study(tmp_path / "whole", OVERLAPPING).alone()))
    by_chance(Study(tmp_path / "study", OVERLAPPING), random.Random(most), most=most)
    before = starts(tmp_path / "study")
    again = Study(tmp_path / "study", OVERLAPPING)
    by_chance(again, random.Random(0))
    assert list(map(untimed, again.search.rows)) == expected
    repeated = [key for key, count in starts(tmp_path / "study").items() if count > before[key] > 0]
    assert not repeated, "what ended does not run again"


def test_a_trial_whose_node_died_gets_another_turn(tmp_path: Path) -> None:
    search = Study(tmp_path / "study", settings_of(4)).search
    died = f"{NODE_DIED}terminated unexpectedly: health check failed"
    config = search.suggest("0")
    for turn in range(5):
        search.fail(str(turn), died)
        assert search.suggest(str(turn + 1)) == config
    search.fail("5", died)
    # Not for ever: then the next trial comes.
    assert search.suggest("6") != config
    search.fail("6", "the process has died")
    assert search.running == 0
    for name in ("7", "8"):
        assert search.suggest(name) is not None
        search.fail(name, "the process has died")
    assert search.suggest("9") is None
    assert search.finished
    assert [died in row.reason for row in search.rows] == [True, False, False, False]


def test_no_trial_begins_when_the_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trial takes 10 s here, so that the third of the second batch is the last to begin within 65 s."""
    passes = ten_seconds(monkeypatch)

    def started(most_s: float) -> Study:
        study = run(Study(tmp_path / "study", SETTINGS, most_s=most_s), each=passes)
        assert study.search.finished
        return study

    first = started(65.0)
    assert len(first.search.rows) == 7
    assert all(row.ok for row in first.search.rows)
    assert first.ledger.rows() == first.search.rows
    before = starts(first.folder)
    # With no more time what ended is there again, and nothing runs.
    assert started(65.0).search.rows == first.search.rows
    assert starts(first.folder) == before
    # With more it goes on, to what a search without a limit finds.
    rest = started(1e9)
    assert len(rest.search.rows) == SETTINGS.trials
    assert (starts(first.folder) - before).total() == SETTINGS.trials - 7
    expected = Study(tmp_path / "without a limit", SETTINGS).alone()
    assert list(map(untimed, rest.search.rows)) == list(map(untimed, expected))


def test_a_failed_trial_costs_no_other_once_the_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = ten_seconds(monkeypatch)

    def started(broken: int | None = None) -> Study:
        return run(Study(tmp_path / "study", SETTINGS, most_s=95.0), broken, each=passes)

    first = started(BROKEN)
    assert len(first.search.rows) == 10
    before = starts(first.folder)
    again = started()
    assert again.search.rows == first.search.rows
    assert again.search.rows[BROKEN].status == "failed"
    assert starts(first.folder) == before


@pytest.mark.parametrize("most_s", [35.0, 45.0, 55.0, 65.0, 75.0, 85.0])
def test_what_ended_in_time_is_there_again_where_batches_overlap(
    most_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once, each of 10 s."""
    passes = ten_seconds(monkeypatch)

    def started() -> Study:
        study = Study(tmp_path / "study", OVERLAPPING, most_s=most_s)
        running, number = list[str](), 0
        while True:
            while len(running) < 2 and (config := study.search.suggest(str(number))) is not None:
                faulty_trial({**config, "folder": str(study.folder)})
                running.append(str(number))
                number += 1
            if not running:
                return study
            passes()
            study.search.on_trial_complete(running.pop(0))

    first = started()
    assert first.search.rows
    before = starts(first.folder)
    assert started().search.rows == first.search.rows
    assert starts(first.folder) == before


def test_pauses_are_counted_over_all_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch's trials take 10 s here, and 5 s to be measured."""
    now = [0.0]
    monkeypatch.setattr("orchestrator.search.batches.time.monotonic", lambda: now[0])

    def started(study: Study, most: int) -> Study:
        measure = study.search._measure

        def slow(rows: Sequence[TrialRow]) -> Sequence[TrialRow]:
            now[0] += 5.0
            return measure(rows)

        study.search._measure = slow
        for number in range(most):
            config = study.search.suggest(str(number))
            assert config is not None
            now[0] += 10.0 / study.settings.batch
            faulty_trial({**config, "folder": str(study.folder)})
            study.search.on_trial_complete(str(number))
        study.search.advance()
        return study

    batch = SETTINGS.batch
    # Killed after two batches: what was begun of the third is not known.
    first = started(Study(tmp_path / "study", SETTINGS), 2 * batch)
    assert first.ledger.spent() == pytest.approx((30.0, 10.0))
    assert first.ledger.spent().share == pytest.approx(1 / 3)
    second = started(Study(tmp_path / "study", SETTINGS), SETTINGS.trials - 2 * batch)
    # It measures the two old batches again here; in the pipeline those come from their records.
    rest = -(-SETTINGS.trials // batch) - 2
    assert second.ledger.spent() == pytest.approx((30.0 + 10.0 + 15.0 * rest, 10.0 + 10.0 + 5.0 * rest))
    ended = [row.seconds for row in second.ledger.rows()]
    assert ended == sorted(ended)  # from the start of the search, not from its last start
    before = second.ledger.spent()
    assert started(Study(tmp_path / "study", SETTINGS), 0).search.finished
    assert second.ledger.spent() == before


def test_a_store_that_cannot_be_written_is_no_failure_of_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(tmp_path / "study", SETTINGS)
    monkeypatch.setattr(local, "_write_synced", guarded(study.folder))
    assert study.search.suggest("0") is not None
    (study.folder / READ_ONLY).touch()
    with pytest.raises(StoreError, match="read-only"):
        study.search.fail("0", "StoreError: cannot write")
    (study.folder / READ_ONLY).unlink()
    again = run(Study(tmp_path / "study", SETTINGS))
    assert [row.status for row in again.search.rows].count("failed") == [
        untimed(row).reason for row in again.search.rows
    ].count("cannot be pruned")
