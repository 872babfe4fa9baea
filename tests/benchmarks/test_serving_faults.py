"""The failure benchmark: its load and its judgement, and a short real run of it."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

import numpy as np
import pytest

from benchmarks.serving_faults import Offline, Sent, _judged, measure, prepare, upper_bound
from orchestrator.load.connection import Reply
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
        row = _judged([sent(probs, members, degraded)], offline, 0.2)
        assert row["wrong"] == wrong
        assert row["degraded"] == degraded
    others = [Sent(0, Reply(503, b""), 0.01), Sent(0, None, 5.0)]
    late = _judged([sent(whole, "m0,m1,m2", False, 0.3), *others], offline, 0.2)
    assert (late["answered_in_time"], late["answered"]) == (0, pytest.approx(1 / 3))
    assert late["statuses"] == {"200": 1, "503": 1, "none": 1}


def test_the_bound_beside_a_zero() -> None:
    assert upper_bound(0, 30_000) == pytest.approx(1e-4, rel=0.01)
    assert upper_bound(0, 0) == 1.0
    assert upper_bound(3, 100) > 0.03


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
