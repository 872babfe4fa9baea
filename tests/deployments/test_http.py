from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.exchange import Answer, Question, Served
from deployments.front import Front
from deployments.http.app import http_app
from deployments.http.respond import _question, respond
from deployments.http.server import counted
from deployments.observe.meter import Meter
from deployments.protocol.model import describe
from deployments.protocol.request import Request
from orchestrator import __version__
from orchestrator.config.serving import ServingSettings
from orchestrator.errors import (
    DeadlineError,
    MemberFailedError,
    OverloadedError,
    QuorumError,
    StoreError,
)
from tests.deployments.models import spec

MODEL = describe(spec())
LIMITS = ServingSettings(max_body_bytes=2048, deadline_s=5, max_requests=2)
BODY = {"inputs": [{"name": "input", "shape": [1, 1, 2, 3], "datatype": "UINT8", "data": [9] * 6}]}
INFER = "/v2/models/small/infer"

Predict = Callable[[Question], Awaitable[Answer]]


async def answers(question: Question) -> Answer:
    outputs: dict[str, np.ndarray] = {
        "probabilities": np.full((len(question.rows), 2), 0.5, np.float32),
        "label": np.zeros(len(question.rows), np.int64),
    }
    return Answer(outputs, ("a", "b"), 3, False)


async def is_ready() -> None:
    pass


async def is_not_ready() -> None:
    raise MemberFailedError("member b is not ready", "a replica could not be reached")


def client(predict: Predict = answers, ready: Any = is_ready) -> httpx.AsyncClient:
    app = http_app(counted([Served(MODEL, predict, ready)], Meter("test"), LIMITS.deadline_s), LIMITS)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def ask(method: str, path: str, *, predict: Predict = answers, ready: Any = is_ready, **more: Any) -> Any:
    async def test() -> httpx.Response:
        async with client(predict, ready) as http:
            return await http.request(method, path, **more)

    return asyncio.run(asyncio.wait_for(test(), 10))


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata_without_a_redirect(path: str) -> None:
    reply = ask("GET", path)
    assert reply.status_code == 200
    assert reply.json() == {
        "name": "orchestrator",
        "version": __version__,
        "extensions": ["binary_tensor_data", "model_configuration", "model_repository", "statistics"],
    }


def test_health() -> None:
    assert ask("GET", "/v2/health/live").json() == {"live": True}
    assert ask("GET", "/v2/health/ready").json() == {"ready": True}
    assert ask("GET", "/v2/models/small/ready").json() == {"name": "small", "ready": True}


@pytest.mark.parametrize("path", ["/v2/health/ready", "/v2/models/small/ready"])
def test_not_ready_is_503_and_says_who(path: str) -> None:
    reply = ask("GET", path, ready=is_not_ready)
    assert reply.status_code == 503
    assert "member b" in reply.json()["error"]
    assert ask("GET", "/v2/health/live", ready=is_not_ready).status_code == 200


def test_probes_at_the_same_time_are_one_check() -> None:
    checks, go = [0], asyncio.Event()

    async def slow() -> None:
        checks[0] += 1
        await go.wait()

    async def test() -> None:
        async with client(ready=slow) as http:
            probes = [asyncio.create_task(http.get("/v2/health/ready")) for _ in range(20)]
            await asyncio.sleep(0.05)
            probes[0].cancel()
            await asyncio.sleep(0.05)
            go.set()
            assert {reply.status_code for reply in await asyncio.gather(*probes[1:])} == {200}
            assert checks == [1]
            await http.get("/v2/health/ready")
            assert checks == [2]

    asyncio.run(asyncio.wait_for(test(), 10))


def test_repository_index() -> None:
    (entry,) = ask("POST", "/v2/repository/index").json()
    assert entry == {"name": "small", "version": MODEL.version, "state": "READY", "reason": ""}
    assert ask("POST", "/v2/repository/index", ready=is_not_ready, json={"ready": True}).json() == []
    assert ask("POST", "/v2/repository/index", json={"ready": 1}).status_code == 400
    (entry,) = ask("POST", "/v2/repository/index", ready=is_not_ready, json={}).json()
    assert entry["state"] == "UNAVAILABLE"
    assert "member b" in entry["reason"]


def test_model_metadata_with_and_without_version() -> None:
    assert ask("GET", "/v2/models/small").json() == MODEL.metadata()
    assert ask("GET", f"/v2/models/small/versions/{MODEL.version}").json() == MODEL.metadata()


@pytest.mark.parametrize("path", [INFER, f"/v2/models/small/versions/{MODEL.version}/infer"])
def test_infer_needs_no_content_type(path: str) -> None:
    reply = ask("POST", path, content=json.dumps(BODY | {"id": "7"}).encode())
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    found = reply.json()
    assert found["id"] == "7"
    assert found["parameters"] == {"weight_epoch": 3, "degraded": False, "members_used": "a,b"}
    assert found["outputs"][0]["data"] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/", 404, "Not found: GET /"),
        ("GET", "/v2/nothing", 404, "Not found"),
        ("GET", "/v2/health/ready/", 404, "Not found"),
        ("GET", "/v2/models/other", 404, "no such model: other. served here: small."),
        ("GET", "/v2/models/other/ready", 404, "no such model"),
        ("POST", "/v2/models/other/infer", 404, "no such model"),
        ("GET", "/v2/models/small/versions/1", 404, "no such version"),
        ("POST", "/v2/models/small/versions/1/infer", 404, "no such version"),
        ("GET", "/v2/models/other/config", 404, "no such model"),
        ("POST", "/v2/repository/models/small/load", 400, "not loaded or unloaded by clients"),
        ("POST", "/v2/repository/models/small/unload", 400, "not loaded or unloaded by clients"),
        ("POST", "/v2/repository/models/other/unload", 404, "no such model"),
        ("GET", "/v2/models/other/stats", 404, "no such model"),
        ("GET", INFER, 405, "Method not allowed"),
        ("DELETE", "/v2", 405, "Method not allowed"),
        ("GET", "/v2/repository/index", 405, "Method not allowed"),
        ("POST", INFER, 400, "not valid JSON"),
    ],
)
def test_refusals_are_json(method: str, path: str, status: int, says: str) -> None:
    reply = ask(method, path)
    assert reply.status_code == status
    assert list(reply.json()) == ["error"]
    assert says in reply.json()["error"]


@pytest.mark.parametrize("value", ["x", "-1", "0", "99999"])
def test_a_bad_header_length_is_400(value: str) -> None:
    reply = ask("POST", INFER, json=BODY, headers={"Inference-Header-Content-Length": value})
    assert reply.status_code == 400


def test_a_stated_length_over_the_limit_is_413() -> None:
    reply = ask("POST", INFER, content=b" " * 2049)
    assert reply.status_code == 413
    assert "at most 2048 bytes" in reply.json()["error"]


def test_an_endless_body_is_refused_while_it_streams() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100:
            sent += 1
            yield b" " * 1000

    assert ask("POST", INFER, content=endless()).status_code == 413
    assert sent <= 4


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (QuorumError("no sound answer", "b (broken)"), 503),
        (MemberFailedError("a replica failed"), 503),
        (OverloadedError("full"), 503),
        (DeadlineError("late"), 504),
        (StoreError("gone"), 500),
        (KeyError("secret"), 500),
    ],
)
def test_failures_of_the_ensemble(error: Exception, status: int) -> None:
    async def fails(_question: Question) -> Answer:
        raise error

    reply = ask("POST", INFER, json=BODY, predict=fails)
    assert reply.status_code == status
    assert "secret" not in reply.json()["error"]


def test_an_output_that_the_placement_does_not_give_is_refused() -> None:
    reply = ask("POST", INFER, json=BODY | {"outputs": [{"name": "member_probs"}]})
    assert reply.status_code == 400
    assert "does not give the output: member_probs" in reply.json()["error"]


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (OverloadedError.after(2.2, "full", 7), "3"),
        (OverloadedError("full"), "1"),
        (DeadlineError("late"), None),
    ],
)
def test_what_may_pass_says_when_to_try_again(error: Exception, seconds: str | None) -> None:
    async def fails(_question: Question) -> Answer:
        raise error

    assert ask("POST", INFER, json=BODY, predict=fails).headers.get("retry-after") == seconds


def test_head_is_get_without_a_body_and_405_says_what_is_allowed() -> None:
    reply = ask("HEAD", "/v2/health/live")
    assert (reply.status_code, reply.content) == (200, b"")
    assert ask("PUT", "/v2/models/small").headers["allow"] == "GET"


def test_the_clients_timeout_shortens_the_deadline() -> None:
    async def slow(question: Question) -> Answer:
        assert question.timeout_s <= 0.05
        await asyncio.sleep(30)
        raise AssertionError

    reply = ask("POST", INFER, json=BODY | {"parameters": {"timeout": 50_000}}, predict=slow)
    assert reply.status_code == 504
    assert "no answer in time" in reply.json()["error"]


def test_an_answer_that_is_not_encoded_in_time_is_not_given() -> None:
    front = Front([Served(MODEL, answers, is_ready)], LIMITS)
    entry, body = front.find("small"), json.dumps(BODY | {"parameters": {"timeout": 100_000}}).encode()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    def decode(data: bytes) -> Request:
        return entry.codec.decode(data, None)

    def encode(_request: Request, _answer: Answer) -> Any:
        time.sleep(0.5)

    async def test() -> None:
        await respond(front, entry, {}, receive, decode, encode, large_bytes=0)

    with pytest.raises(DeadlineError, match="not encoded, in time"):
        asyncio.run(test())


def test_too_many_requests_are_refused_and_the_rest_answered() -> None:
    async def test() -> list[int]:
        gate = asyncio.Event()

        async def waits(question: Question) -> Answer:
            await gate.wait()
            return await answers(question)

        async with client(waits) as http:
            tasks = [asyncio.create_task(http.post(INFER, json=BODY)) for _ in range(4)]
            await asyncio.wait(tasks, timeout=0.2)
            gate.set()
            statuses = [(await task).status_code for task in tasks]
            return [*statuses, (await http.post(INFER, json=BODY)).status_code]

    assert asyncio.run(test()) == [200, 200, 503, 503, 200]


@pytest.mark.parametrize("packed", [False, True])
def test_bodies_that_are_too_large_together_are_refused_and_the_rest_answered(packed: bool) -> None:
    body = json.dumps(BODY).encode().ljust(1500)
    headers = {"content-encoding": "gzip"} if packed else {}
    content = gzip.compress(body) if packed else body
    limits = ServingSettings(max_bodies_bytes=2500)

    async def test() -> list[int]:
        gate = asyncio.Event()

        async def waits(question: Question) -> Answer:
            await gate.wait()
            return await answers(question)

        app = http_app([Served(MODEL, waits, is_ready)], limits)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            first = asyncio.create_task(http.post(INFER, content=content, headers=headers))
            await asyncio.wait([first], timeout=0.2)
            second = await http.post(INFER, content=content, headers=headers)
            gate.set()
            third = await http.post(INFER, content=body) if (await first).status_code == 200 else second
            return [(await first).status_code, second.status_code, third.status_code]

    assert asyncio.run(test()) == [200, 503, 200]


def test_an_id_that_is_no_unicode_can_be_drawn_by() -> None:
    request = Request(np.zeros((1, 3), np.float32), (), id="half \ud800")
    entry = Front([Served(MODEL, answers, is_ready)], LIMITS).find("small")
    assert _question(entry, request, {}, 1.0).request_id.encode() == b"half \\ud800"
