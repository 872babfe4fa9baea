"""Latency statistics and interleaving under a clock of the test's own: nothing here is timed."""

from __future__ import annotations

import gc
import itertools
from collections import Counter
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

from orchestrator.config.measure import LatencySettings
from orchestrator.measure.latency import (
    Latency,
    Merits,
    Race,
    Rival,
    Samples,
    compare,
    measure,
    ratio,
    summarize,
)
from orchestrator.measure.machine import (
    cpu_facts,
    library_versions,
    machine,
    machine_fingerprint,
    memory_bytes,
)

SETTINGS = LatencySettings(batch=8, threads=2, blocks=6, block_ms=4.0)


class Clock:
    """Seconds that pass only when a call says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, ms: float) -> Callable[[], object]:
        def run() -> None:
            self.now += ms / 1e3
            self.order.append(name)

        return run


def test_blocks_are_filled_and_interleaved() -> None:
    clock = Clock()
    calls = {"fast": clock.call("fast", 1.0), "slow": clock.call("slow", 8.0)}
    samples = measure(calls, SETTINGS, baseline="fast", clock=clock)
    assert samples["fast"].blocks == pytest.approx([1.0] * 6)
    assert len(samples["fast"].calls) == 24
    assert len(samples["slow"].calls) == 6
    # The warm-up takes 4 fast and 3 slow calls; then each round starts with the other call.
    rounds = clock.order[7:]
    assert rounds[:10] == ["fast"] * 4 + ["slow", "slow"] + ["fast"] * 4


def test_garbage_collection_is_off_between_the_blocks_and_on_again_after() -> None:
    clock, seen = Clock(), []

    def call() -> None:
        clock.now += 0.002
        seen.append(gc.isenabled())

    measure({"call": call}, SETTINGS, baseline="call", clock=clock)
    assert not any(seen[-6:])
    assert gc.isenabled()


def test_garbage_collection_is_on_again_after_a_failure() -> None:
    clock = Clock()

    def call() -> None:
        clock.now += 0.01
        if not gc.isenabled():
            raise RuntimeError

    with pytest.raises(RuntimeError):
        measure({"call": call}, SETTINGS, baseline="call", clock=clock)
    assert gc.isenabled()


def test_ratio_cancels_what_slows_both() -> None:
    noise = [1.0, 3.0, 1.2, 9.0, 1.1, 2.0]
    value, (low, high) = ratio([8 * level for level in noise], [2 * level for level in noise])
    assert value == pytest.approx(4.0)
    assert (low, high) == pytest.approx((4.0, 4.0))


def test_summary_by_hand() -> None:
    samples = Samples(blocks=[2.0, 1.0, 3.0, 2.0, 2.0], calls=[float(step) for step in range(1, 101)])
    found = summarize(samples, SETTINGS, "aoti", Samples(blocks=[4.0, 4.0, 3.0, 4.0, 4.0]))
    assert (found.batch, found.threads, found.execution) == (8, 2, "aoti")
    assert found.median_ms == 2.0
    assert found.ci[0] <= 2.0 <= found.ci[1]
    assert found.p95_ms == pytest.approx(95.05)
    assert found.tail == found.plain()["tail"] == pytest.approx(95.05 / 50.5)
    assert found.ratio == 2.0
    assert found.plain()["ratio_ci"] == list(found.ratio_ci)


def test_compare_gives_the_baseline_a_ratio_of_one() -> None:
    clock = Clock()
    found = compare(
        {"parent": clock.call("parent", 6.0), "variant": clock.call("variant", 1.5)},
        SETTINGS,
        baseline="parent",
        executions={"variant": "lowered"},
        clock=clock,
    )
    assert (found["parent"].ratio, found["parent"].execution) == (1.0, "eager")
    assert found["variant"].ratio == pytest.approx(4.0)
    assert found["variant"].execution == "lowered"


def test_a_call_faster_than_the_clock_does_not_divide_by_zero() -> None:
    clock = Clock()
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        clock.now += 0.001 if calls <= 4 else 0.0

    assert len(measure({"call": call}, SETTINGS, baseline="call", clock=clock)["call"].blocks) == 6


def test_only_what_is_not_settled_goes_on_beside_the_baseline() -> None:
    clock, random = Clock(), np.random.default_rng(0)
    turns: Counter[str] = Counter()

    def call(name: str, ms: Callable[[], float]) -> Callable[[], object]:
        def run() -> None:
            turns[name] += 1
            clock.now += ms() / 1e3

        return run

    calls = {
        "parent": call("parent", lambda: 4.0),
        "steady": call("steady", lambda: 4.0),
        "shaky": call("shaky", lambda: 4.0 * random.uniform(0.95, 1.05)),
        "hopeless": call("hopeless", lambda: 4.0 * np.exp(random.normal())),
    }
    settings = LatencySettings(threads=2, blocks=6, most_blocks=100, block_ms=0.01, tolerance=0.03)
    found = compare(calls, settings, baseline="parent", clock=clock)
    assert found["steady"].rounds == 6
    assert 6 < found["shaky"].rounds < 100
    low, high = found["shaky"].ratio_ci
    assert max(high / found["shaky"].ratio, found["shaky"].ratio / low) <= 1.032
    assert found["hopeless"].rounds == found["parent"].rounds == 100
    # One call a block, and three before to warm it up.
    assert turns == {name: one.rounds + 3 for name, one in found.items()}


def test_alone_the_baseline_goes_on_until_its_own_median_is_narrow() -> None:
    clock, random = Clock(), np.random.default_rng(1)

    def call() -> None:
        clock.now += 0.004 * random.uniform(0.9, 1.1)

    settings = LatencySettings(threads=2, blocks=6, most_blocks=200, block_ms=4.0, tolerance=0.03)
    found = compare({"parent": call}, settings, baseline="parent", clock=clock)["parent"]
    assert 6 < found.rounds < 200
    assert found.ci[1] <= 1.03 * found.median_ms


def test_what_has_lost_is_measured_no_further() -> None:
    clock, random = Clock(), np.random.default_rng(0)

    def call(ms: float) -> Callable[[], object]:
        def run() -> None:
            clock.now += ms / 1e3 * random.uniform(0.9, 1.1)

        return run

    calls = {name: call(ms) for name, ms in (("parent", 4.0), ("fast", 1.0), ("slow", 2.0), ("alone", 2.0))}
    settings = LatencySettings(threads=2, blocks=6, most_blocks=30, block_ms=0.01, tolerance=0.001)

    def rounds(merits: dict[str, Merits], rivals: list[Rival]) -> dict[str, int]:
        found = compare(calls, settings, baseline="parent", race=Race(merits, rivals), clock=clock)
        return {name: latency.rounds for name, latency in found.items() if name != "parent"}

    to_the_end = {"fast": 30, "slow": 30, "alone": 30}
    assert rounds({}, []) == to_the_end
    # Worse in one of two merits, and slower.
    assert rounds({"fast": (0.9, 5.0), "slow": (0.8, 5.0)}, []) == {**to_the_end, "slow": 6}
    # Better in one of two merits.
    assert rounds({"fast": (0.9, 5.0), "slow": (0.8, 6.0)}, []) == to_the_end
    # Against what was measured before: eight times the baseline's speed beats all, three times the slow ones.
    assert rounds(dict.fromkeys(calls, (0.8,)), [Rival((0.9,), 8.0)]) == dict.fromkeys(to_the_end, 6)
    assert rounds({"fast": (0.8,), "alone": (0.8,)}, [Rival((0.9,), 3.0)]) == {**to_the_end, "alone": 6}


@pytest.mark.slow
def test_stopping_when_it_is_narrow_moves_no_value_and_costs_little_confidence() -> None:
    """Ratios of a known median with noise of a shared machine, in sixty simulated measurements."""
    truth, held, values, rounds = 2.0, 0, [], []
    settings = LatencySettings(threads=2, blocks=15, most_blocks=60, block_ms=1.0, tolerance=0.02)
    for seed in range(60):
        clock, random = Clock(), np.random.default_rng(seed)

        def call(ms: float, clock: Clock = clock, random: np.random.Generator = random) -> None:
            clock.now += ms / 1e3 * np.exp(0.03 * random.standard_t(3))

        calls = {"parent": lambda: call(2.0), "variant": lambda: call(1.0)}
        found = compare(calls, settings, baseline="parent", clock=clock)["variant"]
        held += found.ratio_ci[0] <= truth <= found.ratio_ci[1]
        values.append(found.ratio)
        rounds.append(found.rounds)
    assert abs(np.mean(values) / truth - 1) < 0.005
    assert held > 52
    assert min(rounds) == 15 < np.mean(rounds) < 60 == max(rounds)


def test_with_one_thread_time_that_the_machine_gave_to_others_does_not_count() -> None:
    clock, worked = Clock(), Clock()
    slices = itertools.count()

    def call(ms: float) -> Callable[[], object]:
        def run() -> None:
            worked.now += ms / 1e3
            # Interrupted at every second call for as long as three.
            clock.now += ms / 1e3 * (1 + 3 * (next(slices) % 2))

        return run

    calls = {"parent": call(4.0), "variant": call(1.0)}
    alone = LatencySettings(threads=1, blocks=6, block_ms=4.0)
    found = compare(calls, alone, baseline="parent", clock=clock, processor=worked)
    assert found["parent"].median_ms == pytest.approx(4.0)
    assert (found["variant"].median_ms, found["variant"].ratio) == pytest.approx((1.0, 4.0))
    # The tail is of the clock alone: half of the calls took 1 ms, half of them 4.
    assert found["variant"].tail == found["variant"].at_pace(2.0).tail == pytest.approx(4.0 / 2.5)
    # Several threads work more than passes: then it is the clock that counts.
    both = compare(calls, SETTINGS, baseline="parent", clock=clock, processor=worked)
    assert both["variant"].median_ms == pytest.approx(2.5)
    assert both["parent"].rounds == both["variant"].rounds


def test_a_latency_is_told_at_the_pace_of_its_baseline() -> None:
    clock = Clock()
    calls = {"parent": clock.call("parent", 12.0), "variant": clock.call("variant", 3.0)}
    found = compare(calls, SETTINGS, baseline="parent", clock=clock)["variant"].at_pace(4.0)
    assert (found.median_ms, found.ratio, found.p95_ms) == pytest.approx((1.0, 4.0, 1.0))
    noisy = Latency(8, 2, "eager", 3.0, (2.0, 4.0), 6.0, ratio=4.0, ratio_ci=(3.2, 5.0)).at_pace(8.0)
    assert (noisy.median_ms, noisy.p95_ms) == pytest.approx((2.0, 4.0))
    assert noisy.ci == pytest.approx((1.6, 2.5))
    # Against itself every ratio is one, which says nothing of its spread.
    own = Latency(8, 2, "eager", 3.0, (2.7, 3.6), 6.0).at_pace(1.5)
    assert own.median_ms == 1.5
    assert own.ci == pytest.approx((1.35, 1.8))


CPUINFO = """processor\t: 0
model name\t: Example CPU @ 2.0GHz
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni amx_tile
"""


def test_cpu_facts_of_a_known_text() -> None:
    assert cpu_facts(CPUINFO) == ("Example CPU @ 2.0GHz", ["avx2", "avx512f", "avx512_vnni", "amx_tile"])
    assert cpu_facts("Features : fp asimd sve\n") == ("", ["asimd", "sve"])
    assert cpu_facts("") == ("", [])
    assert memory_bytes("MemTotal:       1024 kB\n") == 2**20
    assert memory_bytes("") is None


def test_machine_is_plain_and_its_fingerprint_ignores_memory() -> None:
    facts = machine()
    assert {"cpu", "cores", "isa", "governor", "memory_bytes", "system", "versions"} == set(facts)
    assert facts["cores"] >= 1
    assert facts["versions"]["torch"]
    same = machine_fingerprint({**facts, "memory_bytes": 1})
    other = machine_fingerprint({**facts, "isa": ["none"]})
    assert machine_fingerprint(facts) == same != other


def test_a_library_that_may_be_missing_is_named_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2", "openvino": "2026.4"}

    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr("orchestrator.measure.machine.version", version)
    assert library_versions() == {"torch": "2", "torchao": None, "numpy": None, "openvino": "2026.4"}
    del installed["openvino"]
    assert set(library_versions()) == {"torch", "torchao", "numpy"}
