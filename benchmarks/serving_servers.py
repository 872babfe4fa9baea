"""Servers of the serving benchmark: started on ports of their own, frozen while others are measured, ended.

Every process that a server starts inherits a mark in its environment. Through it all of them are found (Ray's
daemons and workers, HAProxy), whatever session they are in: to be stopped and continued, and to be ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from orchestrator.load.connection import Target
from orchestrator.load.generate import closed_loop

ROOT = Path(__file__).resolve().parents[1]
MARK = "SERVING_BENCHMARK_MARK"
READY_S, STOP_S = 300.0, 30.0
SETTLE_S = 0.3
"""After a server goes on: its timers catch up."""
SWITCHES = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
_DROPPED = ("RAY_", "ORCHESTRATOR_", "OMP_", "MKL_")


class Server:
    """One server in processes of its own.

    Args:
        name: for messages.
        command: of Python (`-m module ...`); `{port}` in it stands for the port.
        port: it and the nine that follow are this server's.
        folder: for its log, its Ray and its HAProxy; a short path, since sockets lie in it.
        variables: environment beside what all servers have.
    """

    def __init__(
        self, name: str, command: Sequence[str], port: int, folder: Path, variables: Mapping[str, str]
    ) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self._mark = uuid4().hex
        self._asked = False
        folder.mkdir()
        self._log = folder / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, *(word.format(port=port) for word in command)],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,
                env={**_environment(port, folder), MARK: self._mark, **variables},
            )

    def wait_until(self, request: Target, within_s: float = READY_S) -> None:
        """Wait until this request is answered with 200.

        Raises:
            RuntimeError: the server ended, or does not answer.
        """
        deadline = time.monotonic() + within_s
        outcome = "nothing sent"
        while time.monotonic() < deadline and self._process.poll() is None:
            report = closed_loop(request, connections=1, seconds=0.01, timeout_s=5.0)
            if report.answered:
                return
            outcome = ", ".join(report.outcomes)
            time.sleep(0.2)
        log = self._log.read_text().strip()[-2000:]
        raise RuntimeError(f"{self.name} does not answer ({outcome}): {log}")

    def pause(self) -> None:
        """Freeze all its processes: an idle Ray takes cycles from whoever is measured."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)
        time.sleep(SETTLE_S)

    def terminate(self) -> None:
        """Ask it to end; once, since a second signal would cut its own cleaning up short."""
        self._signal(signal.SIGCONT)
        if not self._asked:
            self._process.terminate()
        self._asked = True

    def stop(self, within_s: float = STOP_S) -> int:
        """End it; how many of its processes had to be killed since they were there after so many seconds."""
        self.terminate()
        deadline = time.monotonic() + within_s
        while self.processes() and time.monotonic() < deadline:
            self._process.poll()  # or it would stay as one that has ended and was not asked
            time.sleep(0.1)
        left = self.processes()
        while self.processes():
            self._signal(signal.SIGKILL)
            time.sleep(0.1)
        self._process.wait()
        return len(left)

    def processes(self) -> list[int]:
        """Ids of all its living processes."""
        wanted = f"{MARK}={self._mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)


@contextmanager
def running(servers: list[Server]) -> Iterator[None]:
    """End all servers with the block, also those that are put into the list within it."""
    try:
        yield
    finally:
        for server in servers:
            server.terminate()
        # A Ray that was frozen for minutes may not end by itself: all have the same seconds.
        deadline = time.monotonic() + STOP_S
        for server in servers:
            killed = server.stop(max(0.0, deadline - time.monotonic()))
            if killed:
                print(f"{server.name}: {killed} processes were left behind and killed", file=sys.stderr)


def _environment(port: int, folder: Path) -> dict[str, str]:
    """One thread for math, a Ray that shares nothing, and every port that HAProxy and Serve take."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
    lane = port % 1000 // 10
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_TMPDIR": str(folder),
        # Frozen processes must not count as dead.
        "RAY_health_check_failure_threshold": "1000",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(port + 1),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(port + 2),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy" / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "haproxy" / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder / "haproxy"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "haproxy" / "server-state"),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(20_000 + 100 * lane),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(20_100 + 100 * lane),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(24_000 + 100 * lane),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(24_100 + 100 * lane),
    }
