"""An S3 server on loopback in a process of its own (moto's), and a proxy before it that misbehaves.

`python -m tests.store.s3_server` prints its port. Requests are served one at a time: moto itself looks and
writes in two steps, so that beside each other two conditional writes could both win there, which S3 excludes.

Faults are asked for by a file of lines `KIND COUNT`: the next COUNT writing requests are hit.
    refuse      503 SlowDown, nothing done
    lose        done, and the connection closed without an answer
    twice       sent on twice; the second answer is given
    cut         reading: half of the body
As long as a line stands there, every request is hit by
    down        503, nothing done
    away        the connection closes without an answer, nothing done
    skewed      403 RequestTimeTooSkewed: the client's clock differs too much from the server's
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

FAULTS_VARIABLE = "S3_SERVER_FAULTS"
KEY, SECRET = "AKIATESTTESTTESTTEST", "a-secret-of-the-tests"
_LASTING = ("down", "away", "skewed")
_REFUSALS = {
    "refuse": ("503 Slow Down", "SlowDown"),
    "down": ("503 Service Unavailable", "ServiceUnavailable"),
    "skewed": ("403 Forbidden", "RequestTimeTooSkewed"),
}
_Start = Callable[..., Any]
_App = Callable[[dict[str, Any], _Start], Iterable[bytes]]


class Faulty:
    """A WSGI application around another one: in order, one request at a time, with the faults of a file."""

    def __init__(self, inner: _App, faults: Path) -> None:
        self._inner, self._faults, self._lock = inner, faults, threading.Lock()

    def __call__(self, environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        with self._lock:
            fault = self._next(environ["REQUEST_METHOD"])
            if fault in _REFUSALS:
                status, code = _REFUSALS[fault]
                start(status, [("Content-Type", "application/xml")])
                return [f"<Error><Code>{code}</Code><Message>not now</Message></Error>".encode()]
            if fault == "away":
                _hang_up(environ)
            environ["wsgi.input"] = _Again(environ)
            answers = [self._once(environ) for _ in range(2 if fault == "twice" else 1)]
            status, headers, body = answers[-1]
        if fault == "lose":
            _hang_up(environ)
        start(status, headers)
        return [body[: len(body) // 2]] if fault == "cut" else [body]

    def _once(self, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        environ["wsgi.input"].rewind()
        found: list[Any] = []
        body = b"".join(
            self._inner(dict(environ), lambda status, headers, *_: found.append((status, headers)))
        )
        return *found[-1], body

    def _next(self, method: str) -> str:
        try:
            lines = self._faults.read_text().splitlines()
        except FileNotFoundError:
            return ""
        for number, line in enumerate(lines):
            kind, _, count = line.partition(" ")
            if kind in _LASTING:
                return kind
            if int(count) > 0 and (method == "GET") == (kind == "cut") and method != "HEAD":
                lines[number] = f"{kind} {int(count) - 1}"
                self._faults.write_text("\n".join(lines))
                return kind
        return ""


def _hang_up(environ: dict[str, Any]) -> NoReturn:
    environ["werkzeug.socket"].shutdown(2)
    raise ConnectionResetError("no answer")


class _Again:
    """A request's body, which can be read again."""

    def __init__(self, environ: dict[str, Any]) -> None:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        self._data = environ["wsgi.input"].read(length) if length else b""
        self._at = 0

    def rewind(self) -> None:
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        end = len(self._data) if size is None or size < 0 else self._at + size
        found, self._at = self._data[self._at : end], min(end, len(self._data))
        return found

    def readline(self, *_: object) -> bytes:
        return self.read()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[dict[str, str]]:
    """A running server; what clients need in their environment. Its faults file is `folder/faults`."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, FAULTS_VARIABLE: str(folder / "faults"), "PYTHONUNBUFFERED": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.store.s3_server"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port.isdigit(), (folder / "log").read_text()
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
    finally:
        process.kill()
        process.wait()


def _main() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = Faulty(DomainDispatcherApplication(create_backend_app), Path(os.environ[FAULTS_VARIABLE]))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    print(server.server_port)
    server.serve_forever()


if __name__ == "__main__":
    _main()
