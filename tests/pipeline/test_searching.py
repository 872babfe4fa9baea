"""The search stage on made-up rows: looks at the contract part over several starts, further targets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import ray

from orchestrator.config.measure import Metric, Target
from orchestrator.config.search import Promise, SearchSettings
from orchestrator.errors import ResourceError
from orchestrator.measure.promise import Verdict
from orchestrator.pipeline import searching
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.measuring import Measurer
from orchestrator.search.objectives import TrialRow
from orchestrator.search.trial import TrialJob
from orchestrator.store.store import Store
from tests.search.rows import measured, parent


def job_of(folder: Path, **more: object) -> TrialJob:
    return TrialJob(
        search=SearchSettings.model_validate({"space": {"plan": [{"kind": "bf16"}]}, **more}),
        parent="ab" * 32,
        store=str(folder / "store"),
        data_folder=str(folder),
        data_digest="cd",
        metric=Metric(),
        seed=0,
    )


def test_the_limit_on_latency_is_not_that_of_another_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere:
        def __init__(self, *_: object) -> None:
            pass

        def __call__(self, rows: list[TrialRow]) -> list[TrialRow]:
            return [row.measured(50.0, (49.0, 51.0), 1.0, (0.9, 1.1)) for row in rows]

        def close(self) -> None:
            pass

    monkeypatch.setattr(searching, "Measurer", Elsewhere)
    monkeypatch.setattr(searching, "place", lambda *_: None)
    run = cast(Run, SimpleNamespace(progress=lambda *_: None))
    job = job_of(tmp_path, max_latency_ms=2, max_bytes=150)
    rows = [measured(0, latency=1.0), measured(1, latency=1.0, size=200)]
    found = searching.on_target(run, job, "small", Target(), rows, fresh=False)
    assert [row.feasible for row in found] == [True, False]


def test_a_target_that_no_node_offers_is_told_before_a_trial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "run_search", lambda *_, connect, **__: connect())
    monkeypatch.setattr(searching, "SearchWatch", lambda *_, **__: SimpleNamespace(epoch=None, running=None))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    run = cast(Run, SimpleNamespace(cluster=lambda: None, folder=tmp_path))
    measurer = cast(Measurer, SimpleNamespace(open=lambda: None, prepare=None))
    job = job_of(tmp_path, targets={"edge": {"resource": "edgebox"}})
    with pytest.raises(ResourceError, match="no node offers the resource of the target: edgebox"):
        searching.searched(run, job, parent(), measurer)


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
    job = job_of(tmp_path, promise={"looks": 2})
    search = job.search
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
