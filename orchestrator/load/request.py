"""Requests for a served model, made from what the server says of it (Open Inference Protocol V2)."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import ConfigError, NotFoundError, ServingError
from orchestrator.load.connection import Target

HEADER_LENGTH = "Inference-Header-Content-Length"
TIMEOUT_S = 30.0
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
        tensors: inputs by name.
        binary: raw tensors behind a JSON header, or all in JSON.
    """
    names = {np.dtype(code): name for name, code in _DATATYPES.items()}
    inputs, raw = [], []
    for name, array in tensors.items():
        tensor: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": names[array.dtype]}
        if binary:
            raw.append(array.tobytes())
            tensor["parameters"] = {"binary_data_size": array.nbytes}
        else:
            tensor["data"] = array.ravel().tolist()
        inputs.append(tensor)
    header = json.dumps({"inputs": inputs}, separators=(",", ":")).encode()
    if not binary:
        return header, {"Content-Type": "application/json"}
    lengths = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    return b"".join([header, *raw]), lengths


def post(url: str, body: bytes, headers: Mapping[str, str]) -> Target:
    """A POST request as a target.

    Raises:
        ConfigError: not an HTTP URL.
    """
    return _request("POST", url, body, headers)


def get(url: str) -> Target:
    """A GET request as a target.

    Raises:
        ConfigError: not an HTTP URL.
    """
    return _request("GET", url, b"", {})


def _request(method: str, url: str, body: bytes, headers: Mapping[str, str]) -> Target:
    parts = _split(url)
    lines = [f"{method} {parts.path or '/'} HTTP/1.1", f"Host: {parts.netloc}"]
    lines += [f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join([*lines, "", ""]).encode("ascii")
    return Target(parts.hostname or "", _port(parts), head + body, parts.scheme == "https")


def target_of(
    url: str, model: str | None = None, *, rows: int = 1, binary: bool = True, seed: int = 0
) -> tuple[str, Target]:
    """The name of a served model, and an inference request for it with random values.

    Args:
        url: of the server, like `http://127.0.0.1:8000`.
        model: its name; the only one served when not given.
        rows: value of the first axis where it is free; other free axes are 1.
        binary: see `infer_body`.
        seed: of the values.

    Raises:
        ConfigError: not an HTTP URL, or several models are served and none is named.
        NotFoundError: no such model.
        ServingError: the server cannot be reached, does not speak the protocol, or has an input of a
            datatype without numbers.
    """
    parts = _split(url)
    name = model or _only(parts)
    path = f"{parts.path.rstrip('/')}/v2/models/{quote(name, safe='')}"
    facts = _ask(parts, "GET", path)
    random = np.random.default_rng(seed)
    try:
        tensors = {found["name"]: _values(found, rows, random) for found in facts["inputs"]}
    except (KeyError, TypeError) as error:
        raise ServingError("the server does not speak the Open Inference Protocol", url) from error
    body, headers = infer_body(tensors, binary=binary)
    return name, post(f"{parts.scheme}://{parts.netloc}{path}/infer", body, headers)


def _values(tensor: Mapping[str, Any], rows: int, random: np.random.Generator) -> NDArray[Any]:
    code = _DATATYPES.get(tensor["datatype"])
    if code is None:
        raise ServingError("no request can be made up for this datatype", tensor["datatype"])
    first, *others = tensor["shape"]
    shape = [rows if first < 0 else first, *(max(size, 1) for size in others)]
    dtype = np.dtype(code)
    if dtype.kind == "f":
        return random.normal(size=shape).astype(dtype)
    most = 2 if dtype.kind == "b" else 256 if dtype == np.uint8 else 100
    return random.integers(0, most, shape).astype(dtype)


def _only(parts: SplitResult) -> str:
    found = _ask(parts, "POST", f"{parts.path.rstrip('/')}/v2/repository/index")
    names = [str(one.get("name")) for one in found if isinstance(one, dict)]
    if len(names) != 1:
        raise ConfigError("several models are served", ", ".join(names), "name one with --model")
    return names[0]


def _ask(parts: SplitResult, method: str, path: str) -> Any:
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", _port(parts), timeout=TIMEOUT_S)
    try:
        connection.request(method, path)
        reply = connection.getresponse()
        text = reply.read()
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, ssl.SSLError) else error
        raise ServingError("no answer from the server", f"{parts.netloc} ({reason})") from error
    finally:
        connection.close()
    try:
        document = json.loads(text)
    except ValueError:
        document = {"error": f"status {reply.status}"}
    if reply.status != 200:
        said = document.get("error") if isinstance(document, dict) else None
        kind_of_error = NotFoundError if reply.status == 404 else ServingError
        raise kind_of_error("the server refused", said or f"status {reply.status}")
    return document


def _split(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("not the URL of a server", url, "give it like http://127.0.0.1:8000")
    return parts


def _port(parts: SplitResult) -> int:
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigError("not a port", parts.netloc) from error
    return port or (443 if parts.scheme == "https" else 80)
