"""The failure benchmark: its load and its judgement, and a short real run of it."""

from __future__ import annotations

import asyncio
import json
import subprocess
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import serving_faults
from benchmarks.serving_faults import (
    Offline,
    Sent,
    judged,
    measure,
    phase,
    prepare,
    processes,
    upper_bound,
)
from orchestrator.load.connection import Reply
from orchestrator.load.generate import Report
from orchestrator.store.store import Store


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Offline:
    return prepare(Store(tmp_path_factory.mktemp("faults") / "store"))


def sent(probs: np.ndarray, members: str, degraded: bool, seconds: float = 0.01) -> Sent:
    facts = {"members_used": members, "degraded": degraded}
    outputs = [{"data": probs.tolist()}]
    body = json.dumps({"parameters": facts, "outputs": outputs}).encode()
    return Sent(0, Reply(200, body), seconds)


def test_a_reply_is_right_only_if_it_is_what_its_members_say_and_it_says_so(offline: Offline) -> None:
    all_three, two = frozenset({"m0", "m1", "m2"}), frozenset({"m0", "m2"})
    whole, part = offline.probabilities(all_three, 0), offline.probabilities(two, 0)
    assert np.abs(whole - part).max() > 1e-3
    cases: list[tuple[Any, str, bool, int]] = [
        (whole, "m0,m1,m2", False, 0),
        (part, "m0,m2", True, 0),
        (part, "m0,m1,m2", False, 1),
        (whole, "m0,m2", True, 1),
        (part, "m0,m2", False, 1),
        (whole + 3e-4, "m0,m1,m2", False, 1),
    ]
    for probs, members, degraded, wrong in cases:
        row = judged([sent(probs, members, degraded)], offline, 0.2)
        assert row["wrong"] == wrong
        assert row["degraded"] == degraded
    others = [Sent(0, Reply(503, b""), 0.01), Sent(0, None, 5.0)]
    late = judged([sent(whole, "m0,m1,m2", False, 0.3), *others], offline, 0.2)
    assert (late["answered_in_time"], late["answered"]) == (0, pytest.approx(1 / 3))
    assert late["statuses"] == {"200": 1, "503": 1, "none": 1}


def test_the_bound_beside_a_zero() -> None:
    assert upper_bound(0, 30_000) == pytest.approx(1e-4, rel=0.01)
    assert upper_bound(0, 0) == 1.0
    assert upper_bound(3, 100) > 0.03


def test_a_replica_that_is_gone_is_passed_over_and_the_faults_go_on(tmp_path: Path) -> None:
    running = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]
    running[0].kill()
    running[0].wait()
    for one in running:
        (tmp_path / f"{one.pid}.pid").touch()
    made: list[str] = []

    async def test() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(10):
                injecting = asyncio.ensure_future(processes(tmp_path, 0.01, np.random.default_rng(0), made))
                while not injecting.done() and len(list(tmp_path.glob("*.pid"))):
                    await asyncio.sleep(0.01)
        with pytest.raises(ValueError, match="high <= 0"):
            await injecting

    try:
        asyncio.run(test())
    finally:
        for one in running:
            one.kill()
            one.wait()
    assert "kill" in made
    assert "stop" in made


def test_figures_without_the_faults_that_they_are_of_are_no_figures(
    offline: Offline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ends(*_: Any) -> None:
        raise ProcessLookupError("gone")

    monkeypatch.setattr(serving_faults, "open_loop", lambda *_, **__: Report(1.0))
    load = Namespace(seed=0, rate=1.0, seconds=0.1, deadline_ms=200.0)
    with pytest.raises(ProcessLookupError, match="gone"):
        asyncio.run(phase("http://127.0.0.1:1", offline, tmp_path, ends, 1.0, load))


@pytest.mark.ray
@pytest.mark.slow
def test_faults_are_degraded_answers_and_never_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    load = {"seconds": 8.0, "rate": 6.0, "deadline_ms": 5_000.0, "every_s": 0.5, "process_every_s": 3.0}
    rows, ratios = measure(Namespace(placements=["distributed"], seed=1, **load))
    assert ratios["wrong"].value == 0
    quiet, inside, processes = rows
    assert quiet["requests"] == inside["requests"] > 20
    for row in (quiet, inside, processes):
        assert row["answered"] > 0.9
    assert sum(inside["made"].values()) > 5
    assert processes["made"] == {"kill": 1, "stop": 1}
