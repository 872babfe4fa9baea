"""A search that is started again, without Ray: what was suggested and recorded stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.errors import StoreError
from orchestrator.search.batches import NODE_DIED
from orchestrator.search.ledger import untimed
from orchestrator.search.objectives import TrialRow
from orchestrator.search.study import Suggestion
from orchestrator.store import local
from tests.search.faulty import READ_ONLY, faulty_trial, guarded, starts
from tests.search.spaces import amount_of
from tests.search.study_driver import Study, settings_of

SETTINGS = settings_of(20, sampler="tpe")
BROKEN = 2
"""Of the first trials, which TPE makes its first model from."""


def run(study: Study, broken: int | None = None) -> Study:
    """Like `Study.alone`, but one trial fails."""
    number = 0
    while (config := study.search.suggest(str(number))) is not None:
        if number == broken:
            study.search.fail(str(number), "the trial's process failed")
        else:
            faulty_trial({**config, "folder": str(study.folder)})
            study.search.on_trial_complete(str(number))
        number += 1
    return study


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
        return 0 if suggestion.trained else 1 + amount_of(suggestion.config)

    def suggested(study: Study) -> list[Suggestion]:
        """What runs of the first batch, or the next one, in this order."""
        names = [f"{place}" for place in range(6)]
        found = []
        for name in names:
            config = study.search.suggest(name)
            assert config is not None
            faulty_trial({**config, "folder": str(study.folder)})
            found.append(study.search._running[name])
        for name in names:
            study.search.on_trial_complete(name)
        return found

    study = Study(tmp_path / "sorted", settings, work=work)
    for _ in range(2):
        begun = suggested(study)
        assert [work(one) for one in begun] == sorted(map(work, begun), reverse=True)
        assert [one.number for one in begun] != sorted(one.number for one in begun)
    assert [one.trained for one in begun[-2:]] == [True, True]
    study.search.advance()
    expected = Study(tmp_path / "as suggested", settings).alone()
    assert list(map(untimed, study.search.rows)) == list(map(untimed, expected))


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
    now = [0.0]
    monkeypatch.setattr("orchestrator.search.batches.time.monotonic", lambda: now[0])

    def started(most_s: float) -> Study:
        study = Study(tmp_path / "study", SETTINGS, most_s=most_s)
        number = 0
        while (config := study.search.suggest(str(number))) is not None:
            now[0] += 10.0
            faulty_trial({**config, "folder": str(study.folder)})
            study.search.on_trial_complete(str(number))
            number += 1
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
