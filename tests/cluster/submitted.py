"""`orchestrator submit` in a process of its own, followed line by line."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any


class Submitted:
    """A run that is sent to a cluster; what it tells is read while it goes on."""

    def __init__(self, file: Path, address: str, store: Path, *more: str) -> None:
        line = [sys.executable, "-m", "orchestrator", "submit", str(file), "--address", address]
        self.process = subprocess.Popen(
            [*line, "--store", str(store), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def told(self) -> str:
        return "".join(self.lines)

    def wait_for(self, stage: str, text: str, timeout_s: float = 400) -> None:
        """Until a line of this stage holds the text."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if any(self._is_of(line, stage) and text in line for line in list(self.lines)):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"never came to {stage} {text!r}:\n{self.told}")

    def end(self, timeout_s: float = 500) -> int:
        """Its exit code."""
        try:
            return self.process.wait(timeout_s)
        finally:
            self.close()

    def close(self) -> None:
        """End it, if it goes on; the job itself is not touched."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(5)

    @staticmethod
    def _is_of(line: str, stage: str) -> bool:
        return line.partition("] ")[2].startswith(f"{stage} ")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def __enter__(self) -> Submitted:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
