"""Who looks on while a training's steps go by: to save it in time, and to end it when it hangs."""

from __future__ import annotations

import faulthandler
import re
import time
from pathlib import Path
from typing import Protocol

from orchestrator.config.training import Training
from orchestrator.training.state import TrainState

STEP_TIMEOUT_S = 1800.0
"""Without a setting: longer than any step, compilation or evaluation should take."""
REARM_S = 1.0
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>\S+)')
_LOOP = "training/loop.py"


class Watch(Protocol):
    """Told of every step of a training."""

    def step(self) -> bool:
        """After each step, on every rank equally often: whether the state is to be saved now."""

    def save(self, state: TrainState) -> None:
        """Keep the state of an epoch that has begun; every rank calls it."""


def can_pause(settings: Training) -> bool:
    """Whether a `TrainState` holds all that a step within an epoch needs: these keep more between steps."""
    return (settings.sparsify, settings.clip_weights, settings.lookahead) == (None, None, None)


class HangGuard:
    """Ends the process when no step comes for too long, and leaves a trace of where every thread was.

    A thread in C watches (`faulthandler`), so that one that waits in native code, with or without Python's
    lock, is found too. A process has one guard at a time.
    """

    def __init__(self, limit_s: float, trace: Path) -> None:
        """Begin to watch.

        Args:
            limit_s: longest time between two calls of `step`.
            trace: file for the stacks of all threads; removed again when nothing hangs.
        """
        self._limit_s, self._path = limit_s, trace
        trace.parent.mkdir(parents=True, exist_ok=True)
        self._file = trace.open("w", encoding="utf-8")
        self._armed = 0.0
        self.step()

    def step(self) -> None:
        """Something went on."""
        now = time.monotonic()
        # Arming starts a thread: not after each of a thousand steps a second.
        if now - self._armed >= min(REARM_S, self._limit_s / 4):
            self._armed = now
            faulthandler.dump_traceback_later(self._limit_s, exit=True, file=self._file)

    def close(self) -> None:
        """Watch no longer."""
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        self._path.unlink(missing_ok=True)


def trace_file(folder: Path, rank: int) -> Path:
    """Where a rank's guard leaves its trace."""
    return folder / f"hang-{rank}.txt"


def hung_at(folder: Path) -> str | None:
    """Where the training hung, of the traces that guards left; None when none did."""
    for path in sorted(folder.glob("hang-*.txt")):
        found = _innermost(path.read_text(encoding="utf-8", errors="replace"))
        if found is not None:
            return found
    return None


def forget_hang(folder: Path) -> None:
    """Remove the traces: they were told."""
    for path in folder.glob("hang-*.txt"):
        path.unlink(missing_ok=True)


def _innermost(trace: str) -> str | None:
    """The innermost frame of the thread that trains, else of the first; None without a frame."""
    threads = [block for block in trace.split("\n\n") if _FRAME.search(block)]
    if not threads:
        return None
    block = next((block for block in threads if _LOOP in block), threads[0])
    frame = _FRAME.search(block)
    assert frame is not None
    return f"{'/'.join(Path(frame['file']).parts[-2:])}:{frame['line']} in {frame['function']}"
