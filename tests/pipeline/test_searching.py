"""Looks at the contract part over several starts of a search, on a made-up contract part."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from orchestrator.config.measure import Metric
from orchestrator.config.search import Promise, SearchSettings
from orchestrator.measure.promise import Verdict
from orchestrator.pipeline import searching
from orchestrator.pipeline.context import Run
from orchestrator.search.objectives import TrialRow
from orchestrator.search.trial import TrialJob
from orchestrator.store.store import Store
from tests.search.rows import measured, parent


def test_an_extended_search_has_the_looks_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    def look(run: Run, job: TrialJob, row: TrialRow) -> Verdict:
        del run, job
        looked.append(row.number)
        return Verdict("fails", 0.1, 0.2, 500, 0.02, 0.95, "test", "it drops")

    monkeypatch.setattr(searching, "_look", look)
    run = cast(Run, SimpleNamespace(store=Store(tmp_path / "store")))
    search = SearchSettings.model_validate({"space": {"plan": [{"kind": "bf16"}]}, "promise": {"looks": 2}})
    job = TrialJob(
        search=search,
        parent="ab" * 32,
        store=str(tmp_path / "store"),
        data_folder=str(tmp_path),
        data_digest="cd",
        metric=Metric(),
        seed=0,
    )
    assert search.promise == Promise(looks=2)
    # Each start finds a variant that is safer than all before it.
    rows = [measured(number, drop=-0.001 * number) for number in range(4)]
    reasons = []
    for count in (1, 1, 2, 3, 4):
        more = job.model_copy(update={"search": search.model_copy(update={"trials": 10 * count})})
        choice = searching._choice(run, more, rows[:count], parent())
        assert choice.row is None
        reasons.append(choice.reason.rpartition("; ")[2])
    assert looked == [0, 1], "one that was looked at has its answer"
    assert reasons == [f"{n} of at most 2 variants looked at in all" for n in (1, 1, 2, 2, 2)]
