"""Latency statistics and interleaving under a clock of the test's own: nothing here is timed."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from orchestrator.config.measure import LatencySettings
from orchestrator.measure.latency import Samples, compare, measure, ratio, summarize
from orchestrator.measure.machine import cpu_facts, machine, machine_fingerprint, memory_bytes

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
    samples = measure(calls, SETTINGS, clock=clock)
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

    measure({"call": call}, SETTINGS, clock=clock)
    assert not any(seen[-6:])
    assert gc.isenabled()


def test_garbage_collection_is_on_again_after_a_failure() -> None:
    clock = Clock()

    def call() -> None:
        clock.now += 0.01
        if not gc.isenabled():
            raise RuntimeError

    with pytest.raises(RuntimeError):
        measure({"call": call}, SETTINGS, clock=clock)
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

    assert len(measure({"call": call}, SETTINGS, clock=clock)["call"].blocks) == 6


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
