"""The failure benchmark: its load and its judgement, and a short real run of it."""

from __future__ import annotations

import asyncio
import json
import time
from argparse import Namespace
from typing import Any

import numpy as np
import pytest

from benchmarks.open_loop import Client, Response, poisson
from benchmarks.serving_faults import Offline, _judged, measure, prepare, upper_bound
from orchestrator.store.store import Store


def test_arrivals_do_not_wait_for_answers() -> None:
    async def slow(number: int) -> int:
        await asyncio.sleep(0.3)
        return number

    found = asyncio.run(poisson(slow, 200, 0.5))
    assert [number for number, _ in found] == list(range(len(found)))
    assert 60 < len(found) < 150
    assert min(seconds for _, seconds in found) >= 0.3


def test_a_latency_counts_from_when_the_request_was_due() -> None:
    async def blocks(number: int) -> None:
        if number == 0:
            time.sleep(0.3)  # the generator itself is late

    found = asyncio.run(poisson(blocks, 100, 0.2))
    assert found[1][1] > 0.1


async def _server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while head := await reader.readuntil(b"\r\n\r\n"):
        length = int(head.decode().split("Content-Length: ")[1].split("\r\n")[0])
        body = await reader.readexactly(length)
        if body == b"die":
            writer.close()
            return
        if body != b"hang":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (length, body))


def test_the_client_keeps_connections_and_never_tries_again() -> None:
    async def test() -> list[Response]:
        server = await asyncio.start_server(_server, "127.0.0.1", 0)
        client = Client("127.0.0.1", server.sockets[0].getsockname()[1], "/", 0.2)
        try:
            found = [await client.post(body) for body in (b"one", b"two", b"die", b"hang", b"three")]
            assert len(client._idle) == 1
            return found
        finally:
            await client.close()
            server.close()

    found = asyncio.run(test())
    assert [response.status for response in found] == [200, 200, 0, 0, 200]
    assert [response.body for response in found] == [b"one", b"two", b"", b"", b"three"]


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Offline:
    return prepare(Store(tmp_path_factory.mktemp("faults") / "store"))


def reply(probs: np.ndarray, members: str, degraded: bool) -> Response:
    facts = {"members_used": members, "degraded": degraded}
    outputs = [{"data": probs.tolist()}]
    return Response(200, json.dumps({"parameters": facts, "outputs": outputs}).encode())


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
        row = _judged([(reply(probs, members, degraded), 0.01)], offline, 0.2)
        assert row["wrong"] == wrong
        assert row["degraded"] == degraded
    late = _judged([(reply(whole, "m0,m1,m2", False), 0.3), (Response(503), 0.01)], offline, 0.2)
    assert (late["answered_in_time"], late["answered"]) == (0, 0.5)
    assert late["statuses"] == {"200": 1, "503": 1}


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
