"""`orchestrator.client` against the real application, and against a server that refuses and breaks off."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.client import Client
from orchestrator.errors import (
    DeadlineError,
    InputError,
    NotFoundError,
    OrchestratorError,
    OverloadedError,
    ServingError,
)
from tests.deployments.listening import FEATURE_MODEL, IMAGE_MODEL, expected, front, listening
from tests.deployments.pictures import png

PIXELS = np.random.default_rng(2).integers(0, 256, (2, 1, 2, 3), dtype=np.uint8)
GOOD = b'{"model":"m","version":"1","weight_epoch":0,"degraded":false,"predictions":[{"label":3}]}'


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with listening(front()) as ports:
        yield f"http://127.0.0.1:{ports.http}"


def test_rows_images_and_more_outputs(url: str, tmp_path: Path) -> None:
    wanted = expected(IMAGE_MODEL, PIXELS)
    with Client(url) as client:
        found = client.predict(PIXELS, model="images", outputs=["exit_stage"])
        assert (found.model, found.version, found.weight_epoch) == ("images", IMAGE_MODEL.version, 3)
        assert not found.degraded
        assert [row["label"] for row in found.rows] == wanted["label"].tolist()
        assert [row["exit_stage"] for row in found.rows] == wanted["exit_stage"].tolist()
        (tmp_path / "a.png").write_bytes(png(PIXELS[0]))
        for image in (tmp_path / "a.png", str(tmp_path / "a.png"), png(PIXELS[0])):
            assert client.predict_image(image, "images").rows[0]["label"] == wanted["label"][0]
        values = client.predict([[1, 2, 3]], "features").rows[0]["values"]
        assert values == expected(FEATURE_MODEL, np.array([[1, 2, 3]]))["values"][0].tolist()


def test_what_is_served(url: str) -> None:
    with Client(url + "/") as client:
        assert client.ready()
        assert client.models() == {"images": "READY", "features": "READY"}
        assert client.metadata("images")["inputs"][0]["shape"] == [-1, 1, 2, 3]


def test_errors_are_ours(url: str) -> None:
    with Client(url) as client:
        with pytest.raises(NotFoundError, match="no such model: other"):
            client.predict([[1]], "other")
        with pytest.raises(InputError, match="each row must have 3 numbers, one has: 2"):
            client.predict([[1, 2]], "features")
        with pytest.raises(InputError, match="not numbers that JSON has"):
            client.predict([[float("nan"), 2, 3]], "features")
        with pytest.raises(InputError, match="are no image"):
            client.predict_image(b"x", "images")
    with pytest.raises(InputError, match="must begin with http"):
        Client("127.0.0.1:8000")
    for wrong in ("http://127.0.0.1:80000", "http://127.0.0.1:80a0", "http://[::1", "http://two words"):
        with pytest.raises(InputError, match="URL is not valid"):
            Client(wrong)
    key = {"Authorization": "Bearer \u20ac"}
    two_lines = Client(url, headers={"X-API-Key": "secret\n"})
    for made in (Client("http://a..b:8000"), Client(f"{url}/\u20ac"), Client(url, headers=key), two_lines):
        with made, pytest.raises(InputError, match="letters that HTTP cannot send"):
            made.models()


def test_a_certificate_that_is_not_trusted_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise ssl.SSLCertVerificationError(1, "self-signed certificate")

    monkeypatch.setattr(Client, "_send", refused)
    client = Client("https://127.0.0.1:1", retries=0)
    with client, pytest.raises(ServingError, match=r"cannot be reached.*self-signed"):
        client.models()


@contextmanager
def scripted(*replies: bytes | None) -> Iterator[tuple[str, list[float]]]:
    """A server that gives these replies, each on a connection of its own; None: it breaks off."""
    times: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for reply in replies:
                connection, _ = server.accept()
                with connection:
                    times.append(time.monotonic())
                    connection.recv(65536)
                    connection.sendall(reply or b"")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", times
        thread.join(5)


def reply(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


FULL = reply(503, b'{"error":"full"}')


def test_it_asks_again_until_it_is_answered() -> None:
    with (
        scripted(FULL, None, reply(429, b"slow down"), reply(200, GOOD)) as (url, times),
        Client(url) as client,
    ):
        assert client.predict([[1]]).rows == ({"label": 3},)
    assert len(times) == 4


def test_retry_after_is_honoured() -> None:
    with (
        scripted(reply(503, b"{}", "Retry-After: 1"), reply(200, GOOD)) as (url, times),
        Client(url) as client,
    ):
        client.predict([[1]])
    assert times[1] - times[0] >= 1


def test_retries_end() -> None:
    with (
        scripted(FULL, FULL) as (url, _),
        Client(url, retries=1) as client,
        pytest.raises(OverloadedError, match="full"),
    ):
        client.predict([[1]])


def test_a_wait_past_the_deadline_is_not_begun() -> None:
    start = time.monotonic()
    with (
        scripted(reply(503, b'{"error":"full"}', "Retry-After: 60")) as (url, _),
        Client(url, deadline_s=5) as client,
        pytest.raises(OverloadedError, match="full"),
    ):
        client.predict([[1]])
    assert time.monotonic() - start < 4


def test_several_files_are_said_to_be_degraded_by_what_made_the_degraded_answer() -> None:
    def answer(**facts: object) -> bytes:
        return reply(200, json.dumps({**json.loads(GOOD), **facts}).encode())

    lost = {"degraded": True, "members_used": "a", "members_missing": "b"}
    with scripted(answer(**lost), answer(members_used="a,b")) as (url, _), Client(url) as client:
        found = client.predict([b"RIFF", b"RIFF"])
    assert found.degraded
    assert [row["label"] for row in found.rows] == [3, 3]
    assert found.parameters == {"weight_epoch": 0, **lost}


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (reply(200, b"<html>hello</html>"), ServingError, "answer is not JSON: http://127.0.0.1"),
        (reply(200, b"\xff"), ServingError, "answer is not JSON"),
        (reply(504, b'{"error":"late"}'), DeadlineError, "late"),
        (reply(500, b"<html>"), ServingError, "status 500 and no error of its own"),
        (reply(413, b'{"error":"long"}'), InputError, "long"),
        (reply(400, b"[]"), InputError, "status 400"),
    ],
)
def test_other_errors_are_not_repeated(answer: bytes, error: type[OrchestratorError], says: str) -> None:
    with scripted(answer) as (url, times), Client(url) as client, pytest.raises(error, match=says):
        client.predict([[1]])
    assert len(times) == 1


def test_a_silent_server_is_not_waited_for_longer_than_the_deadline() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Client(f"http://127.0.0.1:{server.getsockname()[1]}", deadline_s=0.3) as client,
    ):
        with pytest.raises(DeadlineError, match=r"no answer in time: 0\.3 s"):
            client.predict([[1]])
        assert not client.ready()


@pytest.mark.parametrize("whole", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"])
def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for_either(whole: bytes) -> None:
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.recv(65536)
                connection.sendall(whole)
                while not done.wait(0.1):
                    connection.sendall(b"x")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        started = time.monotonic()
        with (
            Client(f"http://127.0.0.1:{server.getsockname()[1]}", deadline_s=0.4) as client,
            pytest.raises(DeadlineError, match="no answer in time"),
        ):
            client.predict([[1]])
        assert time.monotonic() - started < 3
        done.set()
        thread.join(5)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with (
        Client(f"http://127.0.0.1:{port}", retries=1) as client,
        pytest.raises(ServingError, match="cannot be reached"),
    ):
        client.predict([[1]])
