"""Requests for a served model, made from what the server says of it (Open Inference Protocol V2)."""

from __future__ import annotations

import io
import json
import math
import wave
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

import numpy as np
from numpy.typing import NDArray

from orchestrator.client import Client
from orchestrator.errors import InputError, ServingError
from orchestrator.load.connection import Target

HEADER_LENGTH = "Inference-Header-Content-Length"
_DATATYPES = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}


def infer_body(tensors: Mapping[str, NDArray[Any]], *, binary: bool = True) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an inference request.

    Args:
        tensors: inputs by name; those of objects are `bytes`.
        binary: raw tensors behind a JSON header, or all in JSON.
    """
    names = {np.dtype(code): name for name, code in _DATATYPES.items()} | {np.dtype(object): "BYTES"}
    inputs, raw = [], []
    for name, array in tensors.items():
        tensor: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": names[array.dtype]}
        if binary:
            raw.append(_bytes(array))
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            tensor["data"] = [
                one.decode() if isinstance(one, bytes) else one for one in array.ravel().tolist()
            ]
        inputs.append(tensor)
    header = json.dumps({"inputs": inputs}, separators=(",", ":")).encode()
    if not binary:
        return header, {"Content-Type": "application/json"}
    lengths = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    return b"".join([header, *raw]), lengths


def post(url: str, body: bytes, headers: Mapping[str, str]) -> Target:
    """A POST request as a target.

    Raises:
        InputError: not an HTTP URL.
    """
    return _request("POST", url, body, headers)


def get(url: str) -> Target:
    """A GET request as a target.

    Raises:
        InputError: not an HTTP URL.
    """
    return _request("GET", url, b"", {})


def _request(method: str, url: str, body: bytes, headers: Mapping[str, str]) -> Target:
    parts = _split(url)
    lines = [f"{method} {parts.path or '/'} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return Target(parts.hostname or "", _port(parts), head + body, parts.scheme == "https")


def target_of(
    url: str,
    model: str | None = None,
    *,
    rows: int = 1,
    binary: bool = True,
    seed: int = 0,
    headers: Mapping[str, str] | None = None,
) -> tuple[str, Target]:
    """The name of a served model, and an inference request for it with random values.

    Args:
        url: of the server, like `http://127.0.0.1:8000`.
        model: its name; the only one served when not given.
        rows: value of the first axis where it is free; other free axes are 1.
        binary: see `infer_body`.
        seed: of the values.
        headers: sent with every request, like a key.

    Raises:
        InputError: not an HTTP URL, several models are served and none is named, or the server refused.
        NotFoundError: no such model.
        ServingError: the server cannot be reached, does not speak the protocol, or has an input of a
            datatype without numbers.
    """
    with Client(url, retries=0, headers=headers) as client:
        name = model or _only(client)
        facts = client.metadata(name)
    random = np.random.default_rng(seed)
    try:
        tensors = {found["name"]: _values(found, rows, random) for found in facts["inputs"]}
    except (KeyError, TypeError) as error:
        raise ServingError("the server does not speak the Open Inference Protocol", url) from error
    try:
        body, about = infer_body(tensors, binary=binary)
    except UnicodeDecodeError as error:
        raise ServingError("files have no form in JSON", name, "send binary tensors") from error
    place = f"{url.rstrip('/')}/v2/models/{quote(name, safe='')}/infer"
    return name, post(place, body, about | dict(headers or {}))


def _bytes(array: NDArray[Any]) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    return b"".join(len(one).to_bytes(4, "little") + one for one in array.ravel().tolist())


def _elements(tensor: Mapping[str, Any], count: int, random: np.random.Generator) -> list[bytes]:
    """Elements of BYTES: what the server says that they are, or else words."""
    about = tensor.get("parameters", {})
    if about.get("content_type") != "audio/wav":
        words = ("red", "blue", "book", "a", "flight", "to", "rome", "play", "some", "jazz")
        return [" ".join(random.choice(words, 1 + 7 * bool(about))).encode() for _ in range(count)]
    rate = int(about["rate_hz"])
    return [_wav(random.normal(scale=3000, size=rate).astype("<i2").tobytes(), rate) for _ in range(count)]


def _wav(samples: bytes, rate: int) -> bytes:
    """A PCM WAV file of one channel of 16 bits."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(samples)
    return buffer.getvalue()


def _values(tensor: Mapping[str, Any], rows: int, random: np.random.Generator) -> NDArray[Any]:
    first, *others = tensor["shape"]
    shape = [rows if first < 0 else first, *(max(size, 1) for size in others)]
    if tensor["datatype"] == "BYTES":
        return np.array(_elements(tensor, math.prod(shape), random), object).reshape(shape)
    code = _DATATYPES.get(tensor["datatype"])
    if code is None:
        raise ServingError("no request can be made up for this datatype", tensor["datatype"])
    dtype = np.dtype(code)
    if dtype.kind == "f":
        return random.normal(size=shape).astype(dtype)
    most = 2 if dtype.kind == "b" else 256 if dtype == np.uint8 else 100
    return random.integers(0, most, shape).astype(dtype)


def _only(client: Client) -> str:
    names = list(client.models())
    if len(names) != 1:
        raise InputError("several models are served", ", ".join(names), "name one with --model")
    return names[0]


def _split(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("not the URL of a server", url, "give it like http://127.0.0.1:8000")
    return parts


def _port(parts: SplitResult) -> int:
    try:
        port = parts.port
    except ValueError as error:
        raise InputError("not a port", parts.netloc) from error
    return port or (443 if parts.scheme == "https" else 80)
