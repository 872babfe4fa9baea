"""A head node of a test's own, whose processes alone are ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.dashboard.modules.job.sdk import JobSubmissionClient

from tests.pipeline.tiny import free_port
from tests.pipeline.victim import end_session

STOP_S = 5.0


class Head:
    """`ray start --head` with two cores, in a session of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        options = {
            "port": free_port(),
            "dashboard-host": "127.0.0.1",
            "dashboard-port": port,
            "dashboard-agent-listen-port": free_port(),
            "ray-client-server-port": free_port(),
            "node-ip-address": "127.0.0.1",
            "num-cpus": 2,
            "object-store-memory": 100 * 2**20,
        }
        line = ["ray", "start", "--head", "--block", "--disable-usage-stats", "--temp-dir", str(folder)]
        with (folder / "head.log").open("a") as log:
            self._process = subprocess.Popen(
                [*line, *(f"--{name}={value}" for name, value in options.items())],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL for all that it started, at one moment."""
        self._process.kill()
        end_session(self._process.pid)
        self._process.wait()

    def stop(self) -> None:
        """In order, and then whatever is left."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        end_session(self._process.pid)


@contextmanager
def environment() -> Iterator[Path]:
    """What heads and clients need to find the tests' Python; a short folder for Ray's sockets."""
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
    ):
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        yield Path(folder)


def connect(address: str) -> JobSubmissionClient:
    """A client, once the dashboard answers."""
    for _ in range(240):
        try:
            return JobSubmissionClient(address)
        except (ConnectionError, RuntimeError):
            time.sleep(0.5)
    raise AssertionError("the dashboard does not answer")
