"""A search that is started again, without Ray: what was suggested and recorded stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import StoreError
from orchestrator.search.ledger import untimed
from orchestrator.store import blobs
from tests.search.faulty import READ_ONLY, faulty_trial, guarded, starts
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


def test_a_store_that_cannot_be_written_is_no_failure_of_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(tmp_path / "study", SETTINGS)
    monkeypatch.setattr(blobs, "_write_synced", guarded(study.folder))
    assert study.search.suggest("0") is not None
    (study.folder / READ_ONLY).touch()
    with pytest.raises(StoreError, match="read-only"):
        study.search.fail("0", "StoreError: cannot write")
    (study.folder / READ_ONLY).unlink()
    again = run(Study(tmp_path / "study", SETTINGS))
    assert [row.status for row in again.search.rows].count("failed") == [
        untimed(row).reason for row in again.search.rows
    ].count("cannot be pruned")
