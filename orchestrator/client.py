"""A client of served ensembles, from the standard library alone.

client = Client("http://127.0.0.1:8000")
for row in client.predict([[5.1, 3.5, 1.4, 0.2]], model="mix").rows:
    print(row["label"], row["probabilities"])
client.predict_image("cat.jpg").rows[0]["class"]
client.predict(["book a flight to rome"]).rows[0]["class"]
client.predict([{"age": 38, "color": "blue"}, {"age": None, "color": "red"}])
client.predict_audio("seven.wav").rows[0]["class"]
"""

from __future__ import annotations

import http.client
import io
import json
import random
import socket
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from orchestrator.errors import (
    DeadlineError,
    InputError,
    NotFoundError,
    OrchestratorError,
    OverloadedError,
    ServingError,
)

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0
MAY_PASS = (429, 502, 503)
"""Statuses after which the same request may succeed. An answer changes nothing, so asking again is safe."""


@dataclass(frozen=True)
class Predictions:
    """An answer of `/predict`."""

    model: str
    version: str
    """Digits of the served spec's digest."""
    weight_epoch: int
    degraded: bool
    """Made without a member that should have answered."""
    rows: tuple[Mapping[str, Any], ...]
    """Outputs by name: `label`, `class` and `probabilities`, or `labels` (names) and `probabilities`, or
    `values`, and those asked for."""
    parameters: Mapping[str, Any]
    """All that the server said of how the answer was made."""


class Client:
    """Asks one server; not for several threads at once.

    Args:
        url: of the server, like `http://127.0.0.1:8000`.
        deadline_s: longest time for one answer, retries included.
        retries: how often a request is sent again that was refused for now, or whose connection broke.
        headers: sent with every request, like a key.

    Raises:
        InputError: the URL is not one of HTTP.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        deadline_s: float = 30.0,
        retries: int = 4,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        try:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise InputError("the server's URL must begin with http:// or https://", url)
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            self._connection = kind(parts.hostname, parts.port)
        except (ValueError, http.client.InvalidURL) as error:
            raise InputError(
                f"the server's URL is not valid ({error})", url, "write it like http://127.0.0.1:8000"
            ) from None
        self._url = url
        self._base = parts.path.rstrip("/")
        self._deadline_s = deadline_s
        self._retries = retries
        self._headers = dict(headers or {})

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def ready(self) -> bool:
        """Whether every model can answer."""
        try:
            self._ask("GET", "/v2/health/ready", retries=1)
        except OrchestratorError:
            return False
        return True

    def models(self) -> dict[str, str]:
        """Name and state of each model."""
        return {one["name"]: one["state"] for one in self._ask("POST", "/v2/repository/index")}

    def metadata(self, model: str) -> dict[str, Any]:
        """Inputs, outputs and version of a model."""
        found: dict[str, Any] = self._ask("GET", f"/v2/models/{quote(model, safe='')}")
        return found

    def send(self, method: str, path: str, body: bytes = b"") -> Any:
        """What a route answers to a JSON body, sent once: for those that change something.

        Raises:
            as `predict`
        """
        return self._ask(method, path, body, "application/json" if body else "", retries=0)

    def predict(
        self, rows: Iterable[Any], model: str | None = None, *, outputs: Collection[str] = ()
    ) -> Predictions:
        """Answers for rows.

        Args:
            rows: what the model takes: nested lists of numbers or an array with `tolist`; texts; mappings of
                column name to value; waveforms; or WAV files as bytes, each of which is a request of its own.
            model: name of the ensemble; not needed when there is one.
            outputs: more outputs that the answer shall have, like `member_probs`.

        Raises:
            InputError: the server refused the rows.
            NotFoundError: no such model.
            OverloadedError: the server refused for now, after all retries.
            DeadlineError: no answer in time.
            ServingError: the server cannot be reached, or failed.
        """
        if isinstance(rows, str | bytes):
            rows = [rows]
        plain = rows.tolist() if hasattr(rows, "tolist") else [_plain(row) for row in rows]
        files = [row for row in plain if isinstance(row, bytes)]
        if files:
            if len(files) < len(plain):
                raise InputError("rows must be all files, or none")
            return _joined([self._predict(file, "audio/wav", model, outputs) for file in files])
        try:
            body = json.dumps({"rows": plain}, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise InputError("the rows are not numbers that JSON has, nor texts", error) from error
        return self._predict(body, "application/json", model, outputs)

    def predict_audio(
        self, sound: str | Path | bytes, model: str | None = None, *, outputs: Collection[str] = ()
    ) -> Predictions:
        """The answer for one WAV file, or its bytes.

        Raises:
            as `predict`
            OSError: the file cannot be read.
        """
        return self._predict(_contents(sound), "audio/wav", model, outputs)

    def predict_image(
        self, image: str | Path | bytes, model: str | None = None, *, outputs: Collection[str] = ()
    ) -> Predictions:
        """The answer for one image file, or its bytes.

        Raises:
            as `predict`
            OSError: the file cannot be read.
        """
        return self._predict(_contents(image), "image/*", model, outputs)

    def _predict(
        self, body: bytes, media_type: str, model: str | None, outputs: Collection[str]
    ) -> Predictions:
        queries = {"timeout_ms": str(max(1, int(1000 * self._deadline_s)))}
        queries |= {"model": model} if model else {}
        queries |= {"outputs": ",".join(outputs)} if outputs else {}
        path = "/predict?" + urlencode(queries)
        found = self._ask("POST", path, body, media_type)
        rows = tuple(found.pop("predictions"))
        found.pop("classes", None)
        known = (found.pop("model"), found.pop("version"))
        return Predictions(*known, found["weight_epoch"], found["degraded"], rows, found)

    def _ask(
        self, method: str, path: str, body: bytes = b"", media_type: str = "", retries: int | None = None
    ) -> Any:
        until = time.monotonic() + self._deadline_s
        left = self._retries if retries is None else retries
        wait_s = FIRST_WAIT_S
        while True:
            error, retry_after_s = None, None
            try:
                status, reply_headers, content = self._send(method, path, body, media_type, until)
                if status == 200:
                    return _document(content, self._url)
                error = _error(status, content)
                retry_after_s = _seconds(reply_headers.get("retry-after"))
                if status not in MAY_PASS:
                    raise error
            except TimeoutError as late:
                self._connection.close()
                raise DeadlineError("no answer in time", f"{self._deadline_s:g} s") from late
            except (OSError, http.client.HTTPException) as broken:
                self._connection.close()
                reason, fix = f"{self._url} ({broken})", "check the URL, and that the server runs"
                error = ServingError("the server cannot be reached", reason, fix)
            except ValueError:  # of a host's name, the path or a header; its text could show a key
                self._connection.close()
                raise InputError(
                    "the server's URL has no host name, or it or a header has letters that HTTP cannot send",
                    self._url,
                ) from None
            # Spread, so that clients that were refused together do not come back together.
            pause_s = max(retry_after_s or 0.0, wait_s * random.uniform(0.5, 1.0))
            if not left or time.monotonic() + pause_s >= until:
                raise error
            time.sleep(pause_s)
            left -= 1
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _send(
        self, method: str, path: str, body: bytes, media_type: str, until: float
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._connection.timeout = left_s
        self._connection.response_class = partial(_Reply, until)  # type: ignore[assignment]
        if self._connection.sock is not None:
            self._connection.sock.settimeout(left_s)
        headers = self._headers | ({"Content-Type": media_type} if media_type else {})
        self._connection.request(method, self._base + path, body, headers)
        reply = self._connection.getresponse()
        return reply.status, reply.headers, reply.read()


class _Reply(http.client.HTTPResponse):
    """A reply that is read until a moment: a socket's own timeout begins anew with each byte."""

    def __init__(self, until: float, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp = io.BufferedReader(_Timed(sock, until))


class _Timed(io.RawIOBase):
    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock, self._until = sock, until
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._sock.settimeout(left_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _contents(file: str | Path | bytes) -> bytes:
    return file if isinstance(file, bytes) else Path(file).read_bytes()


def _plain(row: Any) -> Any:
    """A row as JSON has it: arrays as lists, a missing number (NaN) of a named column as null."""
    if isinstance(row, Mapping):
        return {name: None if value != value else _plain(value) for name, value in row.items()}
    return row.tolist() if hasattr(row, "tolist") else row


def _joined(parts: Sequence[Predictions]) -> Predictions:
    """Answers one after another as one, made as the last one was; or as one that is degraded, if any is.

    Raises:
        ServingError: another release took over meanwhile.
    """
    last = parts[-1]
    if len({(part.version, part.weight_epoch) for part in parts}) > 1:
        raise ServingError("another release took over between two files", last.model, "ask again")
    worst = next((part for part in parts if part.degraded), last)
    return replace(worst, rows=tuple(row for part in parts for row in part.rows))


def _document(content: bytes, url: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise ServingError("the server's answer is not JSON", url, "is another server there?") from error


def _error(status: int, content: bytes) -> OrchestratorError:
    try:
        sentence = str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        sentence = f"the server answered with status {status} and no error of its own"
    if status == 404:
        return NotFoundError(sentence)
    if status in MAY_PASS:
        return OverloadedError(sentence)
    if status in (408, 504):
        return DeadlineError(sentence)
    return InputError(sentence) if status < 500 else ServingError(sentence)


def _seconds(text: str | None) -> float | None:
    """A `Retry-After` in seconds; dates are not taken."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else None
