"""Latencies of artifacts: measured once, read from the store ever after, in process and in an actor."""

from __future__ import annotations

import functools
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
from orchestrator.errors import (
    CompressionError,
    ExecutionError,
    NotFoundError,
    ResourceError,
    first_line,
)
from orchestrator.measure import artifacts, bench_actor
from orchestrator.measure.artifacts import Bench, Subject, keep_latency, measure_artifacts, share_of_call
from orchestrator.measure.latency import Latency, Merits, Rival, compare
from orchestrator.models.build import build, example_inputs
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
    assert Bench(store, SETTINGS).recorded((digest, "eager")) is None


def test_a_latency_from_elsewhere_is_kept_at_the_pace_of_its_own_batch(store: Store) -> None:
    parent, variant = put(store, 4), put(store, 8)
    whole = Latency(32, 1, "eager", 25.0, (24.0, 26.0), 30.0)
    keep_latency(store, parent, parent, whole, LatencySettings())
    for batch, ms, told in ((32, 10.0, 12.5), (1, 0.4, 0.4)):
        found = Latency(batch, 1, "eager", ms, (ms, ms), ms, ratio=2.0, ratio_ci=(1.9, 2.1))
        keep_latency(store, variant, parent, found, LatencySettings())
        record = Bench(store, LatencySettings(batch=batch)).recorded((variant, "eager"), parent)
        assert record is not None
        # Of one row the parent has no record, so it is as it was measured.
        assert record["median_ms"] == pytest.approx(told)


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
    assert Bench(store, SETTINGS).recorded((parent, "eager"))
    assert Bench(store, SETTINGS).recorded((parent, "lowered")) is None
    assert Bench(store, LatencySettings(batch=5, threads=1)).recorded((parent, "eager")) is None
    monkeypatch.setattr(artifacts, "machine", lambda: {"cpu": "another"})
    assert Bench(store, SETTINGS).recorded((parent, "eager")) is None
    measure_artifacts(store, parent, [(parent, "eager")], SETTINGS)
    assert len(loads) == 2


@pytest.mark.parametrize("error", [CompressionError("no such graph"), RuntimeError("no primitive\ntrace")])
def test_what_cannot_run_ends_no_measurement_and_is_tried_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    parent, variant, bad = put(store, 4), put(store, 8), put(store, 9)
    tried: list[str] = []

    def load(_: Store, digest: str, execution: str, **options: Any) -> Any:
        del execution, options
        tried.append(digest)
        if digest == bad:
            raise error
        return lambda inputs: inputs

    monkeypatch.setattr(artifacts, "load", load)
    bench = Bench(store, SETTINGS)
    bench.prepare(parent, [(bad, "eager")])
    for tries in (1, 2):  # told once: what was measured again would be tried again
        found = bench.measure(parent, [(variant, "eager"), (bad, "eager")])
        assert found[0]["digest"] == variant
        assert "median_ms" in found[0]
        assert found[1] == {"digest": bad, "execution": "eager", "error": first_line(error)}
        assert tried.count(bad) == tries


def test_the_oldest_record_wins(store: Store, loads: list[tuple[str, str]]) -> None:
    parent = put(store, 4)
    (first,) = measure_artifacts(store, parent, [(parent, "eager")], SETTINGS)
    store.add_record(parent, {**first, "time": first["time"] + 1, "median_ms": 99.0})
    store.add_record(parent, {"kind": "cost", "macs": 1})
    assert measure_artifacts(store, parent, [(parent, "eager")], SETTINGS) == [first]
    assert len(loads) == 1


def test_what_another_method_measured_is_measured_anew(
    store: Store, loads: list[tuple[str, str]], tmp_path: Path
) -> None:
    parent = put(store, 4)
    (record,) = measure_artifacts(store, parent, [(parent, "eager")], SETTINGS)
    share_of_call(store, (parent, "eager"), SETTINGS)
    old = Store(tmp_path / "old")
    assert put(old, 4) == parent
    for known in store.records(parent):
        old.add_record(parent, {key: value for key, value in known.items() if key != "method"})
    loads.clear()
    assert Bench(old, SETTINGS).recorded((parent, "eager")) is None
    (found,) = measure_artifacts(old, parent, [(parent, "eager")], SETTINGS)
    assert found["time"] > record["time"]
    share_of_call(old, (parent, "eager"), SETTINGS)
    assert loads == [(parent, "eager")] * 2
    assert len(old.records(parent)) == 4


class Machine:
    """One whose calls all take their time at its pace; nothing is timed."""

    def __init__(self) -> None:
        self.now, self.pace, self.jitter = 0.0, 1.0, 0.0
        self.random = np.random.default_rng(0)
        self.ms: dict[str, float] = {}
        self.loaded: list[str] = []

    def load(self, _: Store, digest: str, execution: str, **options: Any) -> Any:
        del execution, options
        self.loaded.append(digest)

        def run(inputs: Any) -> None:
            del inputs
            pace = self.pace * self.random.uniform(1 - self.jitter, 1 + self.jitter)
            self.now += self.ms[digest] * pace / 1e3

        return run


@pytest.fixture
def slowing(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()

    def clock() -> float:
        return found.now

    monkeypatch.setattr(artifacts, "load", found.load)
    monkeypatch.setattr(artifacts, "compare", functools.partial(compare, clock=clock, processor=clock))
    return found


def test_latencies_of_a_fast_and_a_slow_hour_are_comparable(store: Store, slowing: Machine) -> None:
    """What is reported is the ratio to the baseline, at the pace that it was first measured at."""
    parent, early, late = put(store, 4), put(store, 6), put(store, 8)
    slowing.ms = {parent: 4.0, early: 2.0, late: 2.0}
    (first,) = measure_artifacts(store, parent, [(early, "eager")], SETTINGS)
    slowing.pace = 3.0
    (second,) = measure_artifacts(store, parent, [(late, "eager")], SETTINGS)
    assert (first["median_ms"], first["own_ms"], first["ratio"]) == pytest.approx((2.0, 2.0, 2.0))
    assert (second["median_ms"], second["own_ms"], second["ratio"]) == pytest.approx((2.0, 6.0, 2.0))
    assert second["ci"] == pytest.approx([2.0, 2.0])
    (itself,) = measure_artifacts(store, parent, [(parent, "eager")], SETTINGS)
    assert itself["median_ms"] == pytest.approx(4.0)


def test_a_latency_belongs_to_its_baseline(store: Store, slowing: Machine) -> None:
    one, other, variant = put(store, 4), put(store, 6), put(store, 8)
    slowing.ms = {one: 4.0, other: 8.0, variant: 2.0}
    (first,) = measure_artifacts(store, one, [(variant, "eager")], SETTINGS)
    assert Bench(store, SETTINGS).recorded((variant, "eager"), other) is None
    slowing.pace = 2.0
    (second,) = measure_artifacts(store, other, [(variant, "eager")], SETTINGS)
    assert (second["baseline"], second["ratio"]) == (other, pytest.approx(4.0))
    # That baseline was never measured on the machine while it was fast.
    assert second["median_ms"] == pytest.approx(4.0)
    assert Bench(store, SETTINGS).recorded((variant, "eager"), one) == first
    assert Bench(store, SETTINGS).recorded((variant, "eager"), other) == second


def test_what_was_prepared_is_not_loaded_while_it_is_measured(store: Store, slowing: Machine) -> None:
    parent, known, variant, another = (put(store, width) for width in (4, 6, 8, 10))
    slowing.ms = dict.fromkeys((parent, known, variant, another), 2.0)
    measure_artifacts(store, parent, [(known, "eager")], SETTINGS)
    slowing.loaded.clear()
    bench = Bench(store, SETTINGS)
    bench.prepare(parent, [(known, "eager")])
    assert slowing.loaded == []
    bench.prepare(parent, [(variant, "eager")])
    bench.prepare(parent, [("0" * 64, "eager")])  # told when it is measured
    assert slowing.loaded == [parent, variant]
    assert bench.measure(parent, [(known, "eager"), (variant, "eager")])[1]["median_ms"] == pytest.approx(2.0)
    assert slowing.loaded == [parent, variant]
    bench.measure(parent, [(another, "eager")])
    assert slowing.loaded == [parent, variant, another]
    with pytest.raises(NotFoundError):
        bench.measure(parent, [("0" * 64, "eager")])


def test_subjects_race_with_each_other_and_with_rivals(store: Store, slowing: Machine) -> None:
    parent, fast, slow, small = (put(store, width) for width in (4, 6, 8, 10))
    slowing.ms, slowing.jitter = {parent: 4.0, fast: 1.0, slow: 2.0, small: 3.0}, 0.1
    settings = SETTINGS.model_copy(update={"most_blocks": 12, "tolerance": 1e-9})
    subjects: list[Subject] = [(fast, "eager"), (slow, "eager"), (small, "eager")]
    merits: list[Merits] = [(0.0, -9.0), (-0.1, -9.0), (-0.1, -8.0)]
    racing = dict(zip(subjects, merits, strict=True))
    found = Bench(store, settings).measure(parent, subjects, racing)
    assert [record["rounds"] for record in found] == [12, 5, 12]
    elsewhere = settings.model_copy(update={"batch": 5})
    found = Bench(store, elsewhere).measure(parent, subjects, racing, [Rival((0.0, 0.0), 9.0)])
    assert [record["rounds"] for record in found] == [5, 5, 5]


def test_a_bench_s_records_are_its_own(store: Store, slowing: Machine) -> None:
    """A quiet node may be of the driver's kind, and its latencies are still others than the driver's."""
    parent = put(store, 4)
    slowing.ms = {parent: 4.0}
    quiet = Target(**SETTINGS.plain(), resource="bench")
    (here,) = measure_artifacts(store, parent, [(parent, "eager")], SETTINGS)
    assert Bench(store, quiet).recorded((parent, "eager"), parent) is None
    slowing.pace = 0.5
    (there,) = measure_artifacts(store, parent, [(parent, "eager")], quiet)
    assert (here["median_ms"], there["median_ms"]) == pytest.approx((4.0, 2.0))
    assert Bench(store, SETTINGS).recorded((parent, "eager"), parent) == here
    assert Bench(store, Target(**SETTINGS.plain())).recorded((parent, "eager"), parent) == here
    assert Bench(store, SETTINGS, fingerprint="another").recorded((parent, "eager"), parent) is None


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
    actor = bench_actor.start(str(store.root), target=Target(**SETTINGS.plain()))
    record: dict[str, Any]
    (record,) = ray.get(actor.measure.remote(parent, [(variant, "eager")]))
    assert store.records(variant) == [record]
    with pytest.raises(NotFoundError):
        ray.get(actor.measure.remote(parent, [("0" * 64, "eager")]))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_target_held_to_avx2_is_another_machine_and_a_missing_resource_is_refused(store: Store) -> None:
    variant = put(store, 8)
    held = Target(**SETTINGS.plain(), isa="avx2")
    actor = bench_actor.start(str(store.root), cpus=0, target=held)
    record: dict[str, Any]
    (record,) = ray.get(actor.measure.remote(variant, [(variant, "eager")]))
    assert record["machine"]["held_to"] == "avx2"
    # What was measured there is no latency of this machine.
    assert Bench(store, held).recorded((variant, "eager")) is None
    with pytest.raises(ResourceError, match=r"no node offers the resource of the target: bench\."):
        bench_actor.start(str(store.root), target=Target(resource="bench"))
