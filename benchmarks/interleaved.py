"""Timing of models in this process and of peers in theirs, block by block in turns."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.worker import ANSWER
from orchestrator.measure.latency import Samples

_ROOT = Path(__file__).resolve().parents[1]
WARM_UP_S = 0.5


class Subject(Protocol):
    """A model that is timed; each is used with one thread."""

    def predict(self, rows: NDArray[Any], path: Path) -> NDArray[np.float32]:
        """Logits [N, K] of raw rows; a peer reads them from its own folder and answers by `path`."""
        ...

    def warm(self, batch: int, block_ms: float) -> None:
        """Load for a batch size and call until the pace is steady."""
        ...

    def block(self, batch: int) -> list[float]:
        """Times of a block's calls, in ms."""
        ...


class Here:
    """A model of this process."""

    def __init__(self, load: Callable[[int], Callable[[NDArray[Any]], NDArray[np.float32]]]) -> None:
        """Take a function from a batch size to a model."""
        self._load = load
        self._calls: dict[int, tuple[Callable[[], object], int]] = {}
        self._rows = np.random.default_rng(0).integers(0, 256, (256, 3, 32, 32), dtype=np.uint8)

    def predict(self, rows: NDArray[Any], path: Path) -> NDArray[np.float32]:  # noqa: ARG002
        """Logits, in batches of 250."""
        model = self._load(32)
        return np.concatenate([model(rows[i : i + 250]) for i in range(0, len(rows), 250)])

    def warm(self, batch: int, block_ms: float) -> None:
        """Load, and find how many calls fill a block."""
        model, rows = self._load(batch), self._rows[:batch]

        def call() -> object:
            return model(rows)

        times: list[float] = []
        while sum(times) < 1e3 * WARM_UP_S or len(times) < 3:
            times.append(_time(call))
        pace = float(np.median(times[len(times) // 2 :]))
        self._calls[batch] = call, max(1, round(block_ms / pace))

    def block(self, batch: int) -> list[float]:
        """One block."""
        call, repeats = self._calls[batch]
        return [_time(call) for _ in range(repeats)]


class Peer:
    """A model in a process of its own (`benchmarks/peers/worker.py`), timed by its own clock."""

    def __init__(self, module: str, python: str, folder: Path) -> None:
        """Start it; `python` is the interpreter of an environment that has what the module imports."""
        self._log = (folder / f"{module}.log").open("w+")
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.peers.{module}", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=_ROOT,
        )
        self.name = module

    def predict(self, rows: NDArray[Any], path: Path) -> NDArray[np.float32]:
        """Logits of the rows that lie in its folder."""
        self._ask(do="predict", batch=32, path=str(path))
        outputs: NDArray[np.float32] = np.load(path)
        assert len(outputs) == len(rows)
        return outputs

    def warm(self, batch: int, block_ms: float) -> None:
        """Load for a batch size."""
        self._ask(do="warm", batch=batch, block_ms=block_ms)

    def block(self, batch: int) -> list[float]:
        """One block."""
        times: list[float] = self._ask(do="block", batch=batch)["times_ms"]
        return times

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=60)

    def _ask(self, **request: Any) -> dict[str, Any]:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = next((line for line in process.stdout if line.startswith(ANSWER)), "")
        except BrokenPipeError:
            line = ""
        if not line:
            process.wait()
            self._log.seek(0)
            raise RuntimeError(f"{self.name} ended: {self._log.read().strip()[-500:]}")
        answer: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
        return answer


def interleave(
    subjects: Mapping[str, Subject], batch: int, *, rounds: int, block_ms: float
) -> dict[str, Samples]:
    """Blocks of each subject in turns, each round beginning with another one.

    Args:
        subjects: by name.
        batch: rows of a call.
        rounds: blocks of each subject.
        block_ms: length of a block.
    """
    for subject in subjects.values():
        subject.warm(batch, block_ms)
    samples = {name: Samples() for name in subjects}
    names = list(subjects)
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            times = subjects[name].block(batch)
            samples[name].calls += times
            samples[name].blocks.append(sum(times) / len(times))
        print(f"batch {batch}: round {turn + 1} of {rounds}", file=sys.stderr)
    return samples


def _time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3
