"""Load by `wrk`, one thread."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# `wrk` calls `done` at the end; its latencies are in microseconds.
_SCRIPT = """
wrk.method = "POST"
wrk.body = io.open("{body}", "rb"):read("*all")
{headers}
done = function(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format(
    'RESULT {{"requests": %d, "seconds": %f, "failed": %d, "p50_ms": %f, "p99_ms": %f}}\\n',
    summary.requests, summary.duration / 1e6, failed, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True)
class Load:
    """What one block of load saw."""

    requests: int
    seconds: float
    failed: int
    p50_ms: float
    p99_ms: float

    @property
    def per_s(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def available() -> bool:
    """Whether `wrk` is installed."""
    return shutil.which("wrk") is not None


def write_script(path: Path, body: bytes, headers: Mapping[str, str]) -> Path:
    """A script for `wrk` that posts this body."""
    data = path.with_suffix(".body")
    data.write_bytes(body)
    lines = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items())
    path.write_text(_SCRIPT.format(body=data, headers=lines))
    return path


def load(url: str, script: Path, *, connections: int, seconds: int) -> Load:
    """Keep `connections` requests in work.

    Raises:
        RuntimeError: a request failed, or none was answered: such a block has no figure.
    """
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = next((text for text in done.stdout.splitlines() if text.startswith("RESULT ")), None)
    if line is None:
        raise RuntimeError(f"wrk: {done.stderr.strip()} {done.stdout.strip()}")
    found = Load(**json.loads(line.removeprefix("RESULT ")))
    if found.failed or not found.requests:
        raise RuntimeError(f"{url}: {found.failed} of {found.requests} requests failed")
    return found
