"""What a run's latencies are measured by: one kind of machine, remembered, and its records alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray.exceptions import RayTaskError

from orchestrator.cluster import connected
from orchestrator.config.measure import Target
from orchestrator.config.model import Mlp, MlpKwargs
from orchestrator.config.signature import Signature
from orchestrator.errors import ConfigError, ModelError, OrchestratorError
from orchestrator.measure.artifacts import Subject, measure_artifacts
from orchestrator.measure.latency import Merits, Rival
from orchestrator.measure.machine import machine, machine_fingerprint
from orchestrator.models.build import build
from orchestrator.pipeline import measuring
from orchestrator.pipeline.measuring import Measurer, Place
from orchestrator.search.objectives import TrialRow
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store

TARGET = Target(batch=4, blocks=5, most_blocks=5, block_ms=0.2)
SIGNATURE = Signature(
    task="classification", input_shape=(6,), input_dtype="float32", outputs=3, mean=(0.0,) * 6, std=(1.0,) * 6
)


class AskedForAClusterError(Exception):
    pass


def no_cluster() -> None:
    raise AskedForAClusterError


def put(store: Store, width: int) -> str:
    settings = Mlp(kwargs=MlpKwargs(widths=(width,)))
    module = build(settings, SIGNATURE, seed=width)
    return store.put_artifact(
        Draft(model=settings, signature=SIGNATURE, data="d", seed=width), module.state_dict()
    )


def row(digest: str, number: int = 0) -> TrialRow:
    return TrialRow(number, "variant", "eager", digest=digest)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def place(store: Store, connect: Callable[[], None] = no_cluster, *, fresh: bool = False) -> Place:
    return Place(store, connect, store.root.parent / "bench", fresh=fresh)


def remember(store: Store, **changes: object) -> Path:
    """As a measurement on a machine with these facts leaves it."""
    file = Measurer(place(store), "", TARGET)._file
    file.parent.mkdir(exist_ok=True)
    facts = {name: value for name, value in machine().items() if name != "memory_bytes"}
    file.write_text(json.dumps({**facts, **changes}))
    return file


def test_a_run_that_was_measured_needs_no_cluster(store: Store) -> None:
    parent, variant = put(store, 4), put(store, 8)
    (record,) = measure_artifacts(store, parent, [(variant, "eager")], TARGET)
    remember(store)
    measurer = Measurer(place(store), parent, TARGET, "server")
    measurer.prepare(row(variant))
    (found,) = measurer([row(variant)])
    assert (found.status, found.target, found.latency_ms) == ("ok", "server", record["median_ms"])
    assert found.p95_ms == record["p95_ms"]
    assert found.p95_ms is not None
    assert found.p95_ms > 0
    assert measurer.machine == machine_fingerprint(machine())


def test_records_of_another_machine_or_of_no_known_one_do_not_count(store: Store) -> None:
    """Where the driver's machine is not the bench's, what the driver measured is no latency of the search."""
    parent = put(store, 4)
    measure_artifacts(store, parent, [(parent, "eager")], TARGET)
    with pytest.raises(AskedForAClusterError):
        Measurer(place(store), parent, TARGET)([row(parent)])
    remember(store, cpu="another")
    with pytest.raises(AskedForAClusterError):
        Measurer(place(store), parent, TARGET)([row(parent)])
    remember(store)
    with pytest.raises(AskedForAClusterError):
        Measurer(place(store, fresh=True), parent, TARGET)([row(parent)])


def test_a_row_races_with_the_best_rows_before_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, fast, slow, late = (put(store, width) for width in (4, 5, 6, 7))
    speeds, raced = {fast: 4.0, slow: 2.0, late: 3.0, parent: 5.0}, []

    class Actor:
        def __init__(self) -> None:
            self.measure = self

        def remote(
            self, _: str, subjects: list[Subject], racing: list[tuple[Subject, Merits]], rivals: list[Rival]
        ) -> object:
            raced.append(([digest for (digest, _), _ in racing], [rival.speed for rival in rivals]))
            ratios = [speeds[digest] for digest, _ in subjects]
            return [
                {"ci": (1.0, 1.0), "ratio_ci": (r, r), "ratio": r, "median_ms": 1 / r, "fingerprint": here}
                for r in ratios
            ]

    remember(store)
    measurer = Measurer(place(store), parent, TARGET)
    here = measurer.machine
    monkeypatch.setattr(ray, "get", lambda found: found)
    monkeypatch.setattr(measurer, "_actor", Actor())
    rows = [replace(row(digest), bytes=8) for digest in (fast, slow, late)]
    measurer([*rows[:2], replace(row(parent), arm="fp32")])
    measurer(rows[2:])
    assert raced == [([fast, slow], []), ([late], [4.0])]


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ModelError("it gives NaN", "net"), "it gives NaN: net"),
        (MemoryError("no room\nfor 4 GiB"), "the latencies could not be measured: MemoryError: for 4 GiB"),
    ],
)
def test_an_error_of_the_actor_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str
) -> None:
    def fails(_: object) -> None:
        raise RayTaskError("measure", "Traceback ...", raised, "worker", 1, "127.0.0.1")

    monkeypatch.setattr(ray, "get", fails)
    with pytest.raises(OrchestratorError) as caught:
        measuring._got("call")
    assert str(caught.value) == said
    assert caught.value.__suppress_context__


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with connected(cpus=1):
        yield


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_another_machine_is_refused_until_all_is_measured_anew(store: Store) -> None:
    parent, variant = put(store, 4), put(store, 8)
    here = place(store, lambda: None)
    first = Measurer(here, parent, TARGET)
    first.prepare(row(variant))
    (found,) = first([row(variant)])
    first.close()
    assert found.ok
    # The run goes on, from the records alone.
    assert Measurer(place(store), parent, TARGET)([row(variant)]) == [found]
    remember(store, cpu="another")
    second = Measurer(here, parent, TARGET)
    with pytest.raises(ConfigError, match=r"measured on another machine: cpu: 'another' -> .*pass --fresh"):
        second.prepare(row(put(store, 6)))
    second.close()
    third = Measurer(place(store, lambda: None, fresh=True), parent, TARGET)
    assert third([row(variant)]) == [found]
    third.close()
    assert Measurer(place(store), parent, TARGET).machine == first.machine
