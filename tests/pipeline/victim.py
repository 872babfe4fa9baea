"""A run in a process of its own that is killed with all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any


class Victim:
    """`python -m orchestrator run FILE --json` in a session of its own."""

    def __init__(self, file: Path, store: Path, cache: Path) -> None:
        dropped = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS", "ORCHESTRATOR_STORE")
        environment = {name: value for name, value in os.environ.items() if name not in dropped}
        self.lines: list[str] = []
        """What it told so far."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", "run", str(file), "--store", str(store), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**environment, "ORCHESTRATOR_CACHE": str(cache)},
        )

    @property
    def told(self) -> str:
        return "".join(self.lines)

    def kill_at(self, stage: str, text: str) -> None:
        """SIGKILL at the first line of this stage that holds the text."""
        try:
            self._wait_for(stage, text)
        finally:
            self.kill()

    def terminate_at(self, stage: str, text: str) -> int:
        """SIGTERM at such a line; the exit code, once it has ended by itself."""
        try:
            self._wait_for(stage, text)
            self._process.terminate()
            for _ in self._read():
                pass
            return self._process.wait(timeout=60)
        finally:
            self.kill()

    def finish(self) -> dict[str, Any]:
        """Wait until the end; the summary that it printed."""
        output: list[str] = []
        assert self._process.stdout is not None
        reader = threading.Thread(target=lambda: output.append(self._process.stdout.read()))  # type: ignore[union-attr]
        reader.start()
        try:
            for _ in self._read():
                pass
            reader.join()
            assert self._process.wait() == 0, self.told
        finally:
            self.kill()
        summary: dict[str, Any] = json.loads(output[0])
        return summary

    def kill(self) -> None:
        """End the process at once, and what it started: Ray's own processes are in the same session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        end_session(self._process.pid)
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _wait_for(self, stage: str, text: str) -> None:
        for line in self._read():
            if line.partition("] ")[2].startswith(f"{stage} ") and text in line:
                return
        raise AssertionError(f"ended before {stage} {text!r}:\n{self.told}")

    def _read(self) -> Any:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line)
            yield line


def end_session(session: int) -> None:
    """SIGKILL for every process of a session that a test began."""
    for pid in _in_session(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _in_session(session: int) -> list[int]:
    """Processes of a session, by proc(5)."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session:
                found.append(int(entry.name))
    return found
