"""Thousands of broken requests over every route, in process: none is answered by a defect, nothing leaks.

`FUZZ_REQUESTS=100000` makes it a long one.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import gzip
import json
import os
import random
import tracemalloc
import zlib
from typing import Any

import numpy as np

from deployments.http.app import HttpApp
from deployments.http.endpoints import Endpoints
from deployments.protocol.datatypes import DATATYPES
from tests.deployments.calling import Got, send
from tests.deployments.listening import FEATURE_MODEL, IMAGE_MODEL, front
from tests.deployments.pictures import encoded, png
from tests.deployments.test_predict import lists, stream

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "2000"))
ALLOWED = {200, 400, 404, 405, 408, 413, 415, 499}
LEAK_BYTES = 8 * 2**20
PIXELS = np.arange(18, dtype=np.uint8).reshape(3, 1, 2, 3)
METHODS = ("GET", "POST", "POST", "POST", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "", "é")
ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    1e308,
    2**63,
    2**64,
    -(2**80),
    "",
    "x",
    "\0",
    "é\ud800",
    [],
    [[]],
    {},
    [None],
    {"name": "input"},
    "9" * 300,
    [1] * 50,
    float("nan"),
    float("inf"),
)
KINDS = (
    None,
    "application/json",
    "application/octet-stream",
    "image/png",
    "image/jpeg",
    "text/plain",
    "x",
    "é;;",
    "application/vnd.apache.arrow.stream",
)


QUERIES = (
    *("", "model=", "model=x&x", "&&=", "outputs=label", "outputs=,,", "timeout_ms=9000", "%ff=%", "é"),
    *("model=images&outputs=member_probs,exit_stage", "timeout_ms=99999999999"),
)


class Fuzz:
    """Makes requests from a seed: mostly good ones, with one or more things broken."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._paths = list(Endpoints(front()).table())
        self._seeds = (
            png(PIXELS[0]),
            encoded(PIXELS[0], "JPEG"),
            PIXELS.tobytes(),
            json.dumps(PIXELS.tolist()).encode(),
            json.dumps({"rows": [[1.5, 2, 3]]}).encode(),
            np.ones(6, np.float32).tobytes(),
            stream(lists(PIXELS)),
            stream(lists(np.ones((3, 3), np.float32))),
        )

    def request(self) -> tuple[str, str, Any, dict[str, str], str]:
        """Method, path, body, headers, query."""
        rng = self._random
        path = self._path()
        body, headers = self._infer() if path.endswith("infer") else self._plain()
        if rng.random() < 0.3:
            body = self._mutated(body)
        if rng.random() < 0.1:
            name = rng.choice(["gzip", "deflate", "br"])
            body = gzip.compress(body) if name == "gzip" else zlib.compress(body)
            body = self._mutated(body) if rng.random() < 0.5 else body
            headers["Content-Encoding"] = name
        if rng.random() < 0.2:
            headers["Accept-Encoding"] = rng.choice(["gzip", "deflate", "gzip;q=0", ",;", "é"])
        if rng.random() < 0.05:
            headers["Content-Length"] = rng.choice(["-1", "x", "9" * 18, "9" * 30, "²"])
        parts = [body[:3], body[3:]] if rng.random() < 0.2 else body
        method = rng.choice(METHODS) if rng.random() < 0.5 else "POST"
        return method, path, parts, headers, self._query()

    def _path(self) -> str:
        rng = self._random
        path = rng.choice(self._paths)
        if rng.random() < 0.5:
            path = rng.choice(["/v2/models/{model}/infer", "/predict", "/v2/models/{model}/predict"])
        model = rng.choice(["images", "features", "other", "é", "..", "%00", "stats", "a" * 3000])
        version = rng.choice([IMAGE_MODEL.version, FEATURE_MODEL.version, "1", ""])
        path = path.replace("{model}", rng.choice(["images", "features", model])).replace(
            "{version}", version
        )
        return path + rng.choice(["/", "//", "\0", "\n", "?"]) if rng.random() < 0.05 else path

    def _query(self) -> str:
        rng = self._random
        return rng.choice(["model=images", "model=features"] if rng.random() < 0.5 else QUERIES)

    def _plain(self) -> tuple[bytes, dict[str, str]]:
        kind = self._random.choice(KINDS)
        return self._random.choice(self._seeds), {} if kind is None else {"Content-Type": kind}

    def _infer(self) -> tuple[bytes, dict[str, str]]:
        rng = self._random
        rows = rng.randrange(1, 4)
        shape = rng.choice([[rows, 1, 2, 3], [rows, 3], [rows], [0, 3], [2**31 - 1, 1, 2, 3]])
        datatype = rng.choice(DATATYPES)
        tensor: dict[str, Any] = {"name": "input", "shape": shape, "datatype": datatype}
        request: dict[str, Any] = {"id": "7", "inputs": [tensor], "parameters": {}}
        raw = b""
        if rng.random() < 0.5:
            size = rng.choice([rows * 6, rows * 3 * 4, rows * 6 * 8, 5])
            raw = rng.randbytes(size)
            tensor["parameters"] = {"binary_data_size": size}
        else:
            numbers = [0, 1, 255, 1.5, -3, 2**40, True]
            tensor["data"] = rng.choices(numbers[: rng.randrange(1, 8)], k=rows * rng.choice([3, 6]))
        if rng.random() < 0.3:
            request["outputs"] = [
                {
                    "name": rng.choice(["label", "values", "exit_stage", "x"]),
                    "parameters": {"binary_data": rng.random() < 0.5},
                }
            ]
        for _ in range(rng.choice([0, 0, 1, 2])):
            self._break(request)
        header = json.dumps(request).encode()
        length = rng.choice([len(header)] * 6 + [0, 1, len(header) + 1, -1])
        has = raw or rng.random() < 0.1
        return header + raw, {"Inference-Header-Content-Length": str(length)} if has else {}

    def _break(self, value: Any) -> None:
        """Put something odd, or nothing, somewhere inside."""
        rng = self._random
        places: list[tuple[Any, Any]] = []

        def collect(inside: Any) -> None:
            items: Any = ()
            if isinstance(inside, dict):
                items = inside.items()
            elif isinstance(inside, list):
                items = enumerate(inside)
            for key, item in items:
                places.append((inside, key))
                collect(item)

        collect(value)
        holder, key = rng.choice(places)
        if rng.random() < 0.2 and isinstance(holder, dict):
            del holder[key]
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD))

    def _mutated(self, body: bytes) -> bytes:
        rng = self._random
        data = bytearray(body)
        where = rng.randrange(len(data) + 1)
        way = rng.randrange(5)
        if way == 0:
            del data[where:]
        elif way == 1:
            data += rng.randbytes(rng.randrange(9))
        elif way == 2:
            data[where : where + 1] = rng.randbytes(1)
        elif way == 3:
            data[:4] = rng.randbytes(4)
        else:
            data *= 2
        return bytes(data)


def check(got: Got, asked: Any) -> None:
    assert got.status in ALLOWED, (got, asked)
    assert int(got.headers["content-length"]) == len(got.body) or asked[0] == "HEAD", asked
    if got.status not in (200, 499) and got.body and "content-encoding" not in got.headers:
        assert list(got.json()) == ["error"], asked
        assert "Traceback" not in got.json()["error"]
        assert len(got.json()["error"]) < 1500


async def run(fuzz: Fuzz, app: HttpApp, count: int) -> dict[int, int]:
    found: dict[int, int] = {}
    for _ in range(count):
        asked = fuzz.request()
        method, path, body, headers, query = asked
        got = await send(app, method, path, body, headers, query=query)
        check(got, asked)
        found[got.status] = found.get(got.status, 0) + 1
    return found


def test_no_request_is_answered_by_a_defect_and_nothing_leaks() -> None:
    app = HttpApp(front(max_body_bytes=4096))

    async def test() -> tuple[dict[int, int], int]:
        fuzz = Fuzz(seed=1)
        await run(fuzz, app, REQUESTS // 2)  # caches fill
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        found = await run(fuzz, app, REQUESTS // 2)
        gc.collect()
        return found, tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        found, grown = asyncio.run(test())
    finally:
        tracemalloc.stop()
    assert found[200] > REQUESTS // 50, found  # good ones are among them
    assert {400, 404, 405, 415} <= set(found)
    assert grown < LEAK_BYTES, f"{grown} bytes"
