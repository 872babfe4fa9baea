"""A search for a target without VNNI: int8 with 8-bit activations is no variant there, and says why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.cluster import connected
from orchestrator.config.measure import Target
from orchestrator.config.search import SearchSettings
from orchestrator.pipeline.measuring import Measurer, Place
from orchestrator.runtime import int8
from orchestrator.search.choose import preselect
from orchestrator.search.ray_search import run_search
from orchestrator.search.trial import known, parent_row
from orchestrator.store.store import Store
from tests.search.jobs import job_over_a_tiny_model

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(int8.reduce_range(), reason="this CPU has no VNNI: it makes no 8-bit activations"),
]

AVX2 = Target(batch=4, threads=1, blocks=5, block_ms=1, isa="avx2")
PLAN = {"kind": "int8_static", "reduce_range": {"choice": [False, True]}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connected(cpus=1):
        yield


@pytest.mark.usefixtures("cluster")
def test_wide_int8_is_refused_on_avx2_with_the_reason_and_narrow_int8_is_measured(tmp_path: Path) -> None:
    settings = SearchSettings.model_validate(
        {
            "trials": 2,
            "batch": 2,
            "sampler": "grid",
            "space": {"plan": [PLAN]},
            "latency": AVX2.plain(),
            "executions": ["lowered"],
            "arms": False,
            "driver": "pool",
        }
    )
    job = job_over_a_tiny_model(tmp_path, settings)
    store = Store(job.store)
    place = Place(store, connect=lambda: None, folder=tmp_path / "bench")
    with closing(Measurer(place, job.parent, AVX2)) as measurer:
        (parent,) = measurer([parent_row(job, "teacher")])
        rows, _, _ = run_search(job, parent, measure=measurer, on_event=lambda _: None, storage=tmp_path)
    assert parent.ok, parent.reason
    wide, narrow = rows
    assert [row.config["int8_static.reduce_range"] for row in rows] == [False, True]
    # Here, with VNNI, both were made and scored.
    outcomes = [known(store, job, row.config) for row in rows]
    assert all(outcome is not None and outcome.digest and not outcome.failure for outcome in outcomes)
    assert (narrow.status, narrow.latency_ms > 0) == ("ok", True)
    assert (wide.status, wide.feasible) == ("failed", False)
    assert "keeps activations in 8 bits, which overflow on a CPU without VNNI" in wide.reason
    assert "compress again with reduce_range: true" in wide.reason
    candidates, _ = preselect([wide], parent, settings.promise)
    assert candidates == []
