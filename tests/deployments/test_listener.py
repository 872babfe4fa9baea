"""The ingress's own listener on real ports: what a client may send before anyone knows who it is."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from deployments.exchange import Answer, Question, Served
from deployments.http import listener
from deployments.http.app import HttpApp, http_app
from deployments.http.listener import HEAD_BYTES, Listener
from deployments.port_lock import PortLock
from orchestrator.config.access import AccessSettings, TlsSettings
from orchestrator.config.serving import ServingSettings
from orchestrator.errors import ServingError
from tests.deployments.listening import IMAGE_MODEL, free_port, front, served

ONE = b'{"inputs":[{"name":"input","shape":[1,1,2,3],"datatype":"UINT8","data":[1,2,3,4,5,6]}]}'
INFER = b"POST /v2/models/images/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%b" % (
    len(ONE),
    ONE,
)
CHUNKED = b"POST /v2/models/images/infer HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"


@asynccontextmanager
async def listening(predict: Any = None, host: str = "127.0.0.1") -> AsyncIterator[int]:
    model = (
        served(IMAGE_MODEL) if predict is None else Served(IMAGE_MODEL, predict, served(IMAGE_MODEL).ready)
    )
    settings = ServingSettings(host=host, port=free_port(), access=AccessSettings(open=True))
    found = Listener(http_app([model], settings), settings)
    await found.start()
    try:
        yield settings.port
    finally:
        await found.stop()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(limited())


async def reply_to(port: int, *parts: bytes) -> tuple[int, Any]:
    """Status and body of the reply to what is sent until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return int(head.split()[1]), json.loads(await reader.readexactly(length))
    finally:
        writer.close()


@pytest.mark.parametrize(
    "parts",
    [
        [b"GET /", b"a" * HEAD_BYTES],
        [b"GET / HTTP/1.1\r\nx: ", b"a" * HEAD_BYTES],
        [b"GET / HTTP/1.1\r\n", *[b"x: " + b"a" * 1000 + b"\r\n"] * 70],
        [CHUNKED, b"1\r\n{\r\n0\r\n", *[b"x: " + b"a" * 1000 + b"\r\n"] * 700],
    ],
    ids=["url", "header", "headers", "trailers"],
)
def test_headers_without_end_are_refused(parts: list[bytes]) -> None:
    async def test() -> None:
        async with listening() as port:
            status, body = await reply_to(port, *parts)
            assert (status, body) == (400, {"error": f"headers may have at most {HEAD_BYTES} bytes"})
            assert (await reply_to(port, INFER))[0] == 200

    run(test)


def test_a_long_body_is_no_header() -> None:
    async def test() -> None:
        async with listening() as port:
            padded = b"x" * 300_000
            chunks = [b"%x\r\n%b\r\n" % (len(padded), padded), b"0\r\n\r\n"]
            status, body = await reply_to(port, CHUNKED, *chunks)
            assert status == 400
            assert "not valid JSON" in body["error"]

    run(test)


def test_what_is_not_http_is_refused_in_json() -> None:
    async def test() -> None:
        async with listening() as port:
            assert await reply_to(port, b"\x16\x03\x01 hello\r\n\r\n") == (
                400,
                {"error": "Invalid HTTP request received."},
            )

    run(test)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nx: y", INFER + b"GET / HT"])
def test_who_does_not_finish_its_headers_is_not_waited_for(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "HEAD_S", 0.2)

    async def test() -> None:
        async with listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            await asyncio.wait_for(reader.read(), 3)
            writer.close()

    run(test)


def test_who_sends_blank_lines_after_an_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEAD_S", 0.2)

    async def test() -> None:
        async with listening() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(INFER)
            await reader.readuntil(b"outputs")
            await asyncio.sleep(0.05)
            writer.write(b"\r\n")
            await asyncio.wait_for(reader.read(), 3)
            writer.close()

    run(test)


def test_work_for_a_client_that_is_gone_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        asked, cancelled = asyncio.Event(), asyncio.Event()

        async def predict(_question: Question) -> Answer:
            asked.set()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cancelled.set()
                raise
            raise AssertionError

        async with listening(predict) as port:
            _reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(INFER)
            await asked.wait()
            writer.close()
            await asyncio.wait_for(cancelled.wait(), 5)

    run(test)
    assert not caplog.records


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
@pytest.mark.parametrize("reads", [False, True])
def test_who_does_not_read_its_answer_is_not_kept(reads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "READ_S", 0.2)
    whole = 30 * 2**20

    async def large(_scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"%d" % whole)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(whole)})

    async def test() -> None:
        settings = ServingSettings(port=free_port())
        server = Listener(large, settings)
        await server.start()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", settings.port, limit=2**16)
            writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0 if reads else 1)
            left = whole
            with suppress(ConnectionError):
                while left and (part := await reader.read(2**16)):
                    left -= len(part)
            assert (left == 0) == reads
            writer.close()
        finally:
            await server.stop()

    run(test)


def test_every_address_is_those_of_both_versions() -> None:
    async def test() -> None:
        async with listening(host="::") as port:
            assert (await reply_to(port, INFER))[0] == 200

    run(test)


def test_bad_tls_files_are_told_at_the_start(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate", encoding="utf-8")
    settings = ServingSettings(port=free_port(), tls=TlsSettings(certificate=str(bad), key=str(bad)))

    async def test() -> None:
        with pytest.raises(ServingError, match="TLS files cannot be used"):
            await Listener(http_app([served(IMAGE_MODEL)], settings), settings).start()

    run(test)


async def read(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of a reply."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head, await reader.readexactly(length)


def test_who_is_answered_or_about_to_ask_when_the_server_stops_is_not_cut_off() -> None:
    async def test() -> None:
        asked, go_on = asyncio.Event(), asyncio.Event()

        async def predict(question: Question) -> Answer:
            if not asked.is_set():
                asked.set()
                await go_on.wait()
            return await served(IMAGE_MODEL).predict(question)

        settings = ServingSettings(port=free_port())
        app = http_app([Served(IMAGE_MODEL, predict, served(IMAGE_MODEL).ready)], settings)
        found = Listener(app, settings)
        await found.start()
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", settings.port)
        working, working_writer = await asyncio.open_connection("127.0.0.1", settings.port)
        working_writer.write(INFER)
        await asked.wait()
        found.check_health()
        stopping = asyncio.create_task(found.stop())
        await asyncio.sleep(0.2)
        with pytest.raises(OSError, match="Connect"):
            await asyncio.open_connection("127.0.0.1", settings.port)
        idle_writer.write(INFER)
        head, _ = await read(idle)
        assert b" 200 " in head
        assert b"connection: close" in head.lower()
        assert not await idle.read()
        await asyncio.sleep(listener.IDLE_S + 0.3)
        assert not stopping.done()
        go_on.set()
        head, body = await read(working)
        assert b" 200 " in head
        assert json.loads(body)["model_name"] == "images"
        await stopping
        with pytest.raises(ServingError, match="has stopped"):
            found.check_health()
        working_writer.close()
        idle_writer.close()

    run(test)


def test_a_port_is_shared_with_servers_of_the_same_owner_alone() -> None:
    port = free_port()
    one, two, other = (PortLock("127.0.0.1", port, name) for name in ("app a", "app a", "app b"))
    one.take()
    two.take()
    with pytest.raises(ServingError, match="another server listens on the port"):
        other.take()
    one.give_back()
    with pytest.raises(ServingError, match="another server listens on the port"):
        other.take()
    two.give_back()
    other.take()
    other.give_back()


@pytest.mark.parametrize(
    ("host", "other", "free"),
    [
        ("127.0.0.1", "localhost", False),
        ("127.0.0.1", "0.0.0.0", False),
        ("0.0.0.0", "127.0.0.1", False),
        ("127.0.0.1", "127.0.0.2", True),
    ],
)
def test_a_port_of_all_addresses_is_that_of_each(host: str, other: str, free: bool) -> None:
    port = free_port()
    one, two = PortLock(host, port, "app a"), PortLock(other, port, "app b")
    one.take()
    with nullcontext() if free else pytest.raises(ServingError, match="another server listens on the port"):
        two.take()
    two.give_back()
    one.give_back()


class _Companion:
    def __init__(self, name: str, events: list[str], error: ServingError | None = None) -> None:
        self.name, self.events, self.error = name, events, error

    async def start(self) -> None:
        if self.error is not None:
            raise self.error
        self.events.append(f"start {self.name}")

    async def stop(self) -> None:
        self.events.append(f"stop {self.name}")

    def check_health(self) -> None:
        pass


def test_what_was_started_is_stopped_when_another_cannot_start() -> None:
    events: list[str] = []
    beside = [_Companion("a", events), _Companion("b", events, ServingError("no port"))]
    app = HttpApp(front(), beside)
    said: list[Any] = []

    async def test() -> None:
        async def receive() -> Any:
            return {"type": "lifespan.startup"}

        async def send(message: Any) -> None:
            said.append(message)

        await app({"type": "lifespan"}, receive, send)

    run(test)
    assert events == ["start a", "stop a"]
    assert said == [{"type": "lifespan.startup.failed", "message": "no port"}]
