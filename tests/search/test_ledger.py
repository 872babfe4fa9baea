"""What a search leaves in the store."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from orchestrator.config.claim import difference
from orchestrator.errors import CorruptArtifactError, SearchError
from orchestrator.measure.promise import Verdict
from orchestrator.search.ledger import Ledger, read
from orchestrator.store.store import Store
from tests.search.rows import evaluated, measured

SETTINGS = {"parent": "ab", "search": {"sampler": "tpe", "space": {"plan": [1, 2]}}}


def test_rows_come_back_by_number_and_the_first_of_a_number_counts(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    ledger = Ledger(store, SETTINGS)
    arm = dataclasses.replace(measured(-2), arm="bf16 compiled")
    failed = evaluated(1).failed("cannot be pruned")
    for row in (measured(12), failed, arm, measured(12, latency=2.0)):
        ledger.add(row)
    assert Ledger(store, SETTINGS).rows() == [arm, failed, measured(12)]
    assert read(store, ledger.key) == (SETTINGS, [arm, failed, measured(12)])


def test_a_failed_row_gives_way_to_what_a_later_try_brought(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    ledger = Ledger(store, SETTINGS)
    failed = evaluated(3).failed("the trial's process failed")
    assert ledger.add(failed) == failed
    for row in (measured(3), measured(3, latency=2.0), failed):
        assert ledger.add(row) == failed, "what the sampler was told"
    assert Ledger(store, SETTINGS).rows() == [measured(3)]


def test_another_study_has_another_ledger(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    Ledger(store, SETTINGS).add(measured(0))
    assert Ledger(store, {**SETTINGS, "parent": "cd"}).rows() == []
    with pytest.raises(SearchError, match="no such study"):
        read(store, "0" * 64)


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    ledger = Ledger(store, SETTINGS)
    ledger.add(measured(0))
    (file,) = (store.root / "studies").rglob("1000000.json")
    file.write_text("{}")
    with pytest.raises(CorruptArtifactError, match="remove that file"):
        ledger.rows()


def test_a_stopped_trial_is_kept_apart(tmp_path: Path) -> None:
    ledger = Ledger(Store(tmp_path / "store"), SETTINGS)
    assert ledger.stopped("ab") is None
    ledger.stop("ab", {"stopped": True})
    assert ledger.stopped("ab") == {"stopped": True}
    assert ledger.rows() == []


def test_looks_at_the_contract_part_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    ledger = Ledger(store, SETTINGS)
    worst = {"label": "3", "drop": 0.1, "bound": 0.2, "rows": 9}
    first = Verdict("fails", 0.1, 0.2, 500, 0.02, 0.95, "test", "drop 0.1", worst_class=worst)
    other = Verdict("holds", 0.0, 0.01, 500, 0.02, 0.95, "test", "drop 0.0", changed=0.1, changed_bound=0.2)
    assert ledger.looks() == {}
    for verdict in (first, other):
        ledger.look("ab" * 32, "eager", verdict)
    ledger.look("ab" * 32, "lowered", other)
    assert Ledger(store, SETTINGS).looks() == {("ab" * 32, "eager"): first, ("ab" * 32, "lowered"): other}
    assert Ledger(store, {**SETTINGS, "parent": "cd"}).looks() == {}
    assert ledger.rows() == []
    (file,) = (store.root / "studies").rglob("*-lowered.json")
    file.write_text("{}")
    with pytest.raises(CorruptArtifactError, match="remove that file"):
        ledger.looks()


def test_a_difference_is_told_by_its_place() -> None:
    assert difference(SETTINGS, SETTINGS) is None
    other = {"parent": "ab", "search": {"sampler": "gp", "space": {"plan": [1, 2]}}}
    assert difference(SETTINGS, other) == "search.sampler: 'tpe' -> 'gp'"
