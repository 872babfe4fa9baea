"""Latencies of artifacts: measured once, read from the store ever after, in process and in an actor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from orchestrator.cluster import connected
from orchestrator.config.measure import LatencySettings, Target
from orchestrator.config.model import Mlp, MlpKwargs
from orchestrator.config.signature import Signature
from orchestrator.errors import ExecutionError, NotFoundError, ResourceError
from orchestrator.measure import artifacts, bench_actor
from orchestrator.measure.artifacts import (
    example_inputs,
    measure_artifacts,
    recorded_latency,
    share_of_call,
)
from orchestrator.models.build import build
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store

SETTINGS = LatencySettings(batch=4, threads=1, blocks=5, block_ms=0.2)
SIGNATURE = Signature(
    task="classification",
    input_shape=(6,),
    input_dtype="float32",
    outputs=3,
    classes=("a", "b", "c"),
    mean=(100.0,) * 6,
    std=(5.0,) * 6,
)


def put(store: Store, width: int) -> str:
    settings = Mlp(kwargs=MlpKwargs(widths=(width,)))
    module = build(settings, SIGNATURE, seed=width)
    return store.put_artifact(
        Draft(model=settings, signature=SIGNATURE, data="d", seed=width), module.state_dict()
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Executables that do nothing; gives the list of what was loaded."""
    seen: list[tuple[str, str]] = []

    def load(_: Store, digest: str, execution: str, **options: Any) -> Any:
        assert options == {"threads": 1, "batch": 4, "allowed": ()}
        seen.append((digest, execution))
        if execution == "aoti":
            raise ExecutionError("no compiler")
        return lambda inputs: inputs

    monkeypatch.setattr(artifacts, "load", load)
    return seen


def test_a_latency_is_measured_once_and_then_read(store: Store, loads: list[tuple[str, str]]) -> None:
    parent, variant = put(store, 4), put(store, 8)
    first = measure_artifacts(store, parent, [(variant, "eager")], SETTINGS)
    assert loads == [(parent, "eager"), (variant, "eager")]
    assert measure_artifacts(store, parent, [(variant, "eager")], SETTINGS) == first
    assert measure_artifacts(store, parent, [(parent, "eager")], SETTINGS)[0]["ratio"] == 1.0
    assert len(loads) == 2
    assert len(store.records(variant)) == len(store.records(parent)) == 1


def test_the_share_of_a_smaller_call_is_measured_once(store: Store, loads: list[tuple[str, str]]) -> None:
    digest = put(store, 4)
    share = share_of_call(store, (digest, "eager"), SETTINGS)
    assert share > 0
    assert share_of_call(store, (digest, "eager"), SETTINGS) == share
    assert loads == [(digest, "eager")]  # made for a batch of 4, whatever it is called with
    (record,) = store.records(digest)
    assert (record["rows"], record["batch"], record["share"]) == (1, 4, share)
    assert share_of_call(store, (digest, "eager"), SETTINGS, rows=4) == 1.0
    # No latency: what reads those must not take it for one.
    assert recorded_latency(store, (digest, "eager"), SETTINGS) is None


def test_a_record_has_all_that_is_needed_to_read_it(store: Store, loads: list[tuple[str, str]]) -> None:
    parent, variant = put(store, 4), put(store, 8)
    (record,) = measure_artifacts(store, parent, [(variant, "eager")], SETTINGS)
    assert store.records(variant) == [record]
    assert (record["kind"], record["batch"], record["threads"]) == ("latency", 4, 1)
    assert (record["digest"], record["baseline"], record["execution"]) == (variant, parent, "eager")
    assert 0 < record["ci"][0] <= record["median_ms"] <= record["ci"][1]
    assert record["ratio_ci"][0] <= record["ratio"] <= record["ratio_ci"][1]
    assert record["machine"]["cores"] >= 1
    assert loads


def test_other_settings_and_another_machine_are_other_latencies(
    store: Store, loads: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = put(store, 4)
    measure_artifacts(store, parent, [(parent, "eager")], SETTINGS)
    assert recorded_latency(store, (parent, "eager"), SETTINGS)
    assert recorded_latency(store, (parent, "lowered"), SETTINGS) is None
    assert recorded_latency(store, (parent, "eager"), LatencySettings(batch=5, threads=1)) is None
    monkeypatch.setattr(artifacts, "machine", lambda: {"cpu": "another"})
    assert recorded_latency(store, (parent, "eager"), SETTINGS) is None
    measure_artifacts(store, parent, [(parent, "eager")], SETTINGS)
    assert len(loads) == 2


def test_the_oldest_record_wins(store: Store, loads: list[tuple[str, str]]) -> None:
    parent = put(store, 4)
    (first,) = measure_artifacts(store, parent, [(parent, "eager")], SETTINGS)
    store.add_record(parent, {**first, "time": first["time"] + 1, "median_ms": 99.0})
    store.add_record(parent, {"kind": "cost", "macs": 1})
    assert measure_artifacts(store, parent, [(parent, "eager")], SETTINGS) == [first]
    assert len(loads) == 1


@pytest.mark.usefixtures("loads")
def test_a_ratio_belongs_to_its_baseline_and_the_latency_stays(store: Store) -> None:
    one, other, variant = put(store, 4), put(store, 6), put(store, 8)
    (first,) = measure_artifacts(store, one, [(variant, "eager")], SETTINGS)
    assert recorded_latency(store, (variant, "eager"), SETTINGS, other) is None
    (second,) = measure_artifacts(store, other, [(variant, "eager")], SETTINGS)
    assert second["baseline"] == other
    assert (second["median_ms"], second["ci"]) == (first["median_ms"], first["ci"])
    assert recorded_latency(store, (variant, "eager"), SETTINGS) == first
    assert recorded_latency(store, (variant, "eager"), SETTINGS, other) == second


def test_what_cannot_run_is_told_and_does_not_stop_the_others(
    store: Store, loads: list[tuple[str, str]]
) -> None:
    parent, variant = put(store, 4), put(store, 8)
    subjects: list[artifacts.Subject] = [(variant, "aoti"), (variant, "eager"), (variant, "aoti")]
    found = measure_artifacts(store, parent, subjects, SETTINGS)
    assert found[0] == {"digest": variant, "execution": "aoti", "error": "no compiler"} == found[2]
    assert found[1]["execution"] == "eager"
    assert len(store.records(variant)) == 1
    assert len(loads) == 3


def test_example_rows_have_the_signature_s_shape_type_and_scale() -> None:
    rows = example_inputs(SIGNATURE, 500)
    assert rows.dtype == np.float32
    assert rows.mean() == pytest.approx(100, abs=1)
    image = SIGNATURE.model_copy(update={"input_shape": (3, 8, 8), "input_dtype": "uint8"})
    assert example_inputs(image, 2).shape == (2, 3, 8, 8)
    assert example_inputs(image, 2).dtype == np.uint8
    np.testing.assert_array_equal(example_inputs(image, 2), example_inputs(image, 2))


def test_real_artifacts_are_loaded_and_threads_are_put_back(store: Store) -> None:
    parent, variant = put(store, 4), put(store, 64)
    before = torch.get_num_threads()
    (record,) = measure_artifacts(store, parent, [(variant, "eager")], SETTINGS)
    assert record["median_ms"] > 0
    assert torch.get_num_threads() == before


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with connected(cpus=1):
        yield


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_actor_measures_and_records(store: Store) -> None:
    parent, variant = put(store, 4), put(store, 8)
    actor = bench_actor.start(str(store.root))
    record: dict[str, Any]
    (record,) = ray.get(actor.measure.remote(parent, [(variant, "eager")], SETTINGS.plain()))
    assert store.records(variant) == [record]
    with pytest.raises(NotFoundError):
        ray.get(actor.measure.remote(parent, [("0" * 64, "eager")], SETTINGS.plain()))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_target_held_to_avx2_is_another_machine_and_a_missing_resource_is_refused(store: Store) -> None:
    variant = put(store, 8)
    held = Target(**SETTINGS.plain(), isa="avx2")
    actor = bench_actor.start(str(store.root), cpus=0, target=held)
    record: dict[str, Any]
    (record,) = ray.get(actor.measure.remote(variant, [(variant, "eager")], held.plain()))
    assert record["machine"]["held_to"] == "avx2"
    # What was measured there is no latency of this machine.
    assert recorded_latency(store, (variant, "eager"), held) is None
    with pytest.raises(ResourceError, match=r"no node offers the resource of the target: bench\."):
        bench_actor.start(str(store.root), target=Target(resource="bench"))
