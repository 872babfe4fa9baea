from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

import pytest

from deployments.http.app import HttpApp
from deployments.http.encoding import accepted, decompress
from deployments.protocol.errors import ProtocolError, TooLargeError, UnsupportedEncodingError
from tests.deployments.calling import Got, send
from tests.deployments.listening import front

LIMIT = 2**20
APP = HttpApp(front(max_body_bytes=LIMIT, deadline_s=0.3))
INFER = "/v2/models/images/infer"


def body(rows: int) -> bytes:
    tensor = {"name": "input", "datatype": "UINT8", "shape": [rows, 1, 2, 3], "data": [7] * 6 * rows}
    return json.dumps({"inputs": [tensor]}).encode()


def post(content: bytes, **headers: str) -> Got:
    return asyncio.run(
        send(APP, "POST", INFER, content, {k.replace("_", "-"): v for k, v in headers.items()})
    )


def pack(content: bytes, name: str) -> bytes:
    return gzip.compress(content) if name.lower() == "gzip" else zlib.compress(content)


@pytest.mark.parametrize("name", ["gzip", "deflate", "GZIP"])
def test_compressed_bodies_are_read(name: str) -> None:
    assert post(pack(body(3), name), content_encoding=name).json()["outputs"][0]["shape"] == [3, 2]


def test_the_header_length_counts_what_was_before_compression() -> None:
    tensor = {
        "name": "input",
        "datatype": "UINT8",
        "shape": [1, 1, 2, 3],
        "parameters": {"binary_data_size": 6},
    }
    header = json.dumps({"inputs": [tensor]}).encode()
    length = str(len(header))
    got = post(
        gzip.compress(header + bytes(6)), content_encoding="gzip", inference_header_content_length=length
    )
    assert got.status == 200


@pytest.mark.parametrize("name", ["br", "gzip, gzip", "x", ""])
def test_other_encodings_are_refused(name: str) -> None:
    assert post(body(1), content_encoding=name).status == 415


@pytest.mark.parametrize(
    "content",
    [b"", b"x", gzip.compress(body(1))[:-3], gzip.compress(body(1)) + b"x", zlib.compress(body(1))],
    ids=["empty", "no gzip", "cut", "more behind it", "deflate"],  # gzip's bytes hold the time
)
def test_damaged_bodies_are_refused(content: bytes) -> None:
    assert post(content, content_encoding="gzip").status == 400


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_a_bomb_is_never_unpacked(name: str) -> None:
    """It would become a thousandfold; zlib stops one byte past the limit."""
    bomb = pack(bytes(16 * LIMIT), name)
    assert len(bomb) < LIMIT
    assert post(bomb, content_encoding=name).status == 413


def test_the_limit_itself_may_be_reached() -> None:
    assert len(decompress(zlib.compress(bytes(100)), "deflate", 100)) == 100
    with pytest.raises(TooLargeError):
        decompress(zlib.compress(bytes(101)), "deflate", 100)
    with pytest.raises(ProtocolError, match="cut off"):
        decompress(zlib.compress(bytes(100))[:-1], "deflate", 100)
    with pytest.raises(UnsupportedEncodingError):
        decompress(b"", "zstd", 100)


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (None, None),
        ("", None),
        ("br, zstd", None),
        ("br, gzip", "gzip"),
        ("deflate;q=0.5, gzip", "deflate"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip; q=0.000", None),
        ("*", None),
    ],
)
def test_what_a_client_accepts(header: str | None, wanted: str | None) -> None:
    assert accepted(header) == wanted


def test_only_long_answers_are_compressed() -> None:
    long = post(body(200), accept_encoding="gzip")
    assert long.headers["content-encoding"] == "gzip"
    assert int(long.headers["content-length"]) == len(long.body)
    assert json.loads(gzip.decompress(long.body)) == post(body(200)).json()
    assert "content-encoding" not in post(body(1), accept_encoding="gzip").headers


def test_a_body_that_stops_coming_is_408() -> None:
    async def test() -> int:
        statuses = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(5)
            return {"type": "http.disconnect"}

        async def record(message: Any) -> None:
            statuses.append(message.get("status"))

        scope = {"type": "http", "method": "POST", "path": INFER, "headers": []}
        await APP(scope, receive, record)
        return int(statuses[0])

    assert asyncio.run(asyncio.wait_for(test(), 3)) == 408


def test_a_client_that_goes_away_is_not_an_error() -> None:
    assert asyncio.run(send(APP, "POST", INFER, [b"{"], ends=False)).status == 499
    assert asyncio.run(send(APP, "POST", INFER, body(1))).status == 200
