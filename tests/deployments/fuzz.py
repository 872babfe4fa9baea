"""Broken requests over every route, with good ones among them; the same again for a seed."""

from __future__ import annotations

import copy
import gzip
import json
import random
import zlib
from typing import Any

import numpy as np
import pyarrow as pa

from deployments.http.admin import Admin
from deployments.http.endpoints import Endpoints
from deployments.protocol.datatypes import DATATYPES
from tests.deployments.listening import FEATURE_MODEL, IMAGE_MODEL, front
from tests.deployments.pictures import encoded, png
from tests.deployments.raws import COLUMNS, ROWS, SOUNDS, TONE, wav
from tests.deployments.released import NAME
from tests.deployments.test_predict import lists, stream

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

    models: tuple[str, ...] = ("images", "features")
    kinds: tuple[str | None, ...] = KINDS
    queries: tuple[str, ...] = QUERIES

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._paths = list(Endpoints(front()).table())
        self._admin = list(Admin({}, front()).routes())
        self._seeds: tuple[bytes, ...] = (
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
        if rng.random() < 0.05:
            return self._change()
        path = self._path()
        body, headers = self._infer() if path.endswith("infer") else self._plain()
        if path.endswith("index"):
            body = rng.choice([b"", b'{"ready": true}'])
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

    def _change(self) -> tuple[str, str, Any, dict[str, str], str]:
        """Of a release, or labels."""
        rng = self._random
        digest = rng.choice(["0" * 64, "0", "x" * 64, "../..", ""])
        body: dict[str, Any] = rng.choice(
            [
                {"weights": [rng.random(), 0.5]},
                {"thresholds": [0.5]},
                {"release": digest},
                {"spec": rng.choice([NAME, "toys/other", digest])},
                {"release": digest, "share": 0.1, "shadow": True},
                {"labels": {"7": rng.choice([1, [1, 2], 99, -1])}},
                {},
            ]
        )
        if body and rng.random() < 0.5:
            self._break(body)
        path = rng.choice(self._admin).replace("{model}", rng.choice(["mix", "mix", "mix", "images", "é"]))
        data = json.dumps(body).encode()
        method = rng.choice(["POST", "POST", "POST", "GET", "DELETE", "PUT"])
        return method, path, self._mutated(data) if rng.random() < 0.2 else data, {}, ""

    def _path(self) -> str:
        rng = self._random
        path = rng.choice(self._paths)
        if rng.random() < 0.5:
            path = rng.choice(["/v2/models/{model}/infer", "/predict", "/v2/models/{model}/predict"])
        model = rng.choice(["images", "features", "other", "é", "..", "%00", "stats", "a" * 3000])
        version = rng.choice([IMAGE_MODEL.version, FEATURE_MODEL.version, "1", ""])
        path = path.replace("{model}", rng.choice([*self.models, model])).replace("{version}", version)
        return path + rng.choice(["/", "//", "\0", "\n", "?"]) if rng.random() < 0.05 else path

    def _query(self) -> str:
        rng = self._random
        return rng.choice([f"model={name}" for name in self.models] if rng.random() < 0.5 else self.queries)

    def _plain(self) -> tuple[bytes, dict[str, str]]:
        kind = self._random.choice(self.kinds)
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
        return self._sent(request, raw)

    def _sent(self, request: dict[str, Any], raw: bytes) -> tuple[bytes, dict[str, str]]:
        """A request with some of it broken, as body and headers."""
        rng = self._random
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


class RawFuzz(Fuzz):
    """The same for models that take text, sound and columns."""

    models = ("text", "audio", "table")
    kinds = (*KINDS, None, None, None, "audio/wav", "audio/x-wav", "text/csv", "application/json")

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        words = ["book a flight", "", "é", "\0", "x" * 300, "  ", "\u202e", "[1]"]
        self._words = words
        self._last = ""
        self._seeds = (
            *(word.encode() for word in words),
            json.dumps(words).encode(),
            *SOUNDS,
            wav(TONE, rate=44100, channels=2),
            wav()[:50],
            json.dumps(TONE.tolist()).encode(),
            json.dumps([[0.5, -0.5], [0.1]]).encode(),
            json.dumps(ROWS).encode(),
            json.dumps({"rows": [{**ROWS[0], "age": 10**400}, ROWS[1]]}).encode(),
            json.dumps([dict.fromkeys(ROWS[0], rng_value) for rng_value in (None, True, "3", [1])]).encode(),
            stream(pa.array(words)),
            stream(pa.array(SOUNDS)),
            stream(pa.array([TONE, TONE[:3]])),
            stream(*(pa.array(COLUMNS[name]) for name in COLUMNS), names=list(COLUMNS)),
            stream(pa.nulls(5), pa.nulls(5), pa.nulls(5), names=list(COLUMNS)),
        )

    def _path(self) -> str:
        model, route = self._random.choice(self.models), self._random.choice(["infer", "predict"])
        good = self._random.random() < 0.5
        self._last = f"/v2/models/{model}/{route}" if good else super()._path()
        return self._last

    def _query(self) -> str:
        good = self._random.random() < 0.5 and "/models/" in self._last
        return "" if good else super()._query()

    def _plain(self) -> tuple[bytes, dict[str, str]]:
        rng = self._random
        fitting: dict[str, list[bytes]] = {
            "text": [word.encode() for word in self._words],
            "audio": SOUNDS,
            "table": [json.dumps(ROWS).encode(), json.dumps(ROWS[0]).encode()],
        }
        model = next((name for name in fitting if f"/{name}/" in self._last), None)
        if model is None or rng.random() < 0.5:
            return super()._plain()
        return rng.choice(fitting[model]), {}

    def _infer(self) -> tuple[bytes, dict[str, str]]:
        rng = self._random
        rows = rng.randrange(1, 4)
        raw, inputs = b"", []
        wanted = list(COLUMNS) if "/table/" in self._last else ["input"]
        for name in wanted if rng.random() < 0.9 else rng.choice([["input"], [*COLUMNS, "x"], ["age"]]):
            datatype = "BYTES" if name in ("input", "color") else "FP32"
            shape = [rows, 1]
            if rng.random() < 0.3:
                datatype = rng.choice(["INT16", "INT32", rng.choice(DATATYPES)])
                shape = rng.choice([[rows], [rows, 10], [2**31 - 1, 1], [0], [1, 2**40]])
            tensor: dict[str, Any] = {"name": name, "shape": shape, "datatype": datatype}
            if rng.random() < 0.5:
                some = SOUNDS if "/audio/" in self._last else [*self._seeds, b"red", b""]
                found = [rng.choice(some) for _ in range(rows)]
                data = b"".join(len(one).to_bytes(4, "little") + one for one in found)
                if datatype != "BYTES":
                    data = rng.randbytes(rows * rng.choice([4, 4, 4, 1, 2, 8, 20, 40]))
                if rng.random() < 0.2:
                    data = self._mutated(data)
                tensor["parameters"] = {"binary_data_size": len(data) + rng.choice([0] * 9 + [1])}
                raw += data
            else:
                values = (
                    [0, 1, 9, 1.5, None, -3, 2**40, True] if datatype != "BYTES" else [*self._words, None]
                )
                count = rows * rng.choice([1, 1, 1, 10])
                tensor["data"] = rng.choices(values[: rng.randrange(1, 9)], k=count)
            inputs.append(tensor)
        return self._sent({"id": "7", "inputs": inputs, "parameters": {}}, raw)
