"""Progress for people: one line an event, readable on a terminal and in a job's log alike."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Writes `[  12.3s] train    teacher: epoch 3 of 20 ...` lines; never moves the cursor."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    def __call__(self, stage: str, text: str) -> None:
        """Write one line about a stage (`data`, `train`, `search`, ...)."""
        self._stream.write(f"[{self.seconds:7.1f}s] {stage:<9} {text}\n")
        self._stream.flush()
