"""What a run tells while it works: events, written one line each or shown by a live view (`live.py`)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, TextIO

Cores = tuple[float, float]
"""(used, total) of the cluster."""
CORES_EVERY_S = 1.0


@dataclass(frozen=True)
class Training:
    """Where the training of one model, or the recovery of one variant, stands."""

    name: str
    state: Literal["waiting", "training", "trained", "failed"] = "training"
    epoch: int = 0
    """Epochs that are finished."""
    epochs: int | None = None
    """Of the whole training, where it is known."""
    loss: float | None = None
    metric: float | None = None
    metric_name: str = "metric"
    seconds: float | None = None
    """Of the last epoch."""

    @property
    def left_s(self) -> float | None:
        """Seconds that the other epochs will take; None where that cannot be told yet."""
        if self.epochs is None or self.seconds is None:
            return None
        return max(0, self.epochs - self.epoch) * self.seconds


@dataclass(frozen=True)
class Best:
    """The best trial so far: the fastest within the allowed drop, else the one that drops least."""

    name: str
    metric: float
    latency_ms: float
    speedup: float
    feasible: bool


@dataclass(frozen=True)
class Result:
    """A trial, or an honest arm, that was measured."""

    number: int
    """From 0; below 0 for an arm."""
    name: str
    config: Mapping[str, float | int | str | bool]
    metric: float
    drop: float
    """How much worse than the parent."""
    latency_ms: float
    bytes: int
    feasible: bool = True


@dataclass(frozen=True)
class Trials:
    """Where a search stands."""

    total: int
    running: int = 0
    finished: int = 0
    failed: int = 0
    metric_name: str = "metric"
    best: Best | None = None
    hypervolume: float | None = None
    left_s: float | None = None
    """Estimated from the trials that ended."""
    ended: str = ""
    """Name of the trial that just ended, if one did."""
    ended_badly: bool = False
    result: Result | None = None
    """Of the trial that was just measured, if one was."""


@dataclass(frozen=True)
class Event:
    """One thing that happened."""

    stage: str
    """`data`, `train`, `search`, ..."""
    text: str
    """For people, in one line; empty for what only a live view shows."""
    seconds: float
    """Since the run began."""
    fact: Training | Trials | None = None
    """The same for machines."""
    cores: Cores | None = None
    """In use and in all, where a cluster is there."""


class Consumer(Protocol):
    """Shows events to somebody."""

    def show(self, event: Event) -> None:
        """Take one event; called in the thread of the run."""

    def close(self) -> None:
        """Leave the terminal as it was; more events may follow."""


class LineLog:
    """Writes `[   12.3s] train     teacher: epoch 3 of 20 ...` lines; never moves the cursor."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr

    def show(self, event: Event) -> None:
        """One line, or nothing where there is no text."""
        if event.text:
            self._stream.write(line_of(event) + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Nothing to do."""


class Together:
    """Shows every event to several consumers."""

    def __init__(self, consumers: Sequence[Consumer]) -> None:
        self._consumers = tuple(consumers)

    def show(self, event: Event) -> None:
        """To each in turn."""
        for consumer in self._consumers:
            consumer.show(event)

    def close(self) -> None:
        """Each in turn."""
        for consumer in self._consumers:
            consumer.close()


def line_of(event: Event) -> str:
    """The event as one line of a log."""
    return f"[{event.seconds:7.1f}s] {event.stage:<9} {event.text}"


class Progress:
    """Hands what a run tells to a consumer: a log of lines unless another one is given.

    As a context manager it closes the consumer at the end, however that comes about.
    """

    def __init__(
        self, consumer: Consumer | None = None, cores: Callable[[], Cores | None] | None = None
    ) -> None:
        """Begin to count the seconds.

        Args:
            consumer: shows the events.
            cores: says what the cluster uses; asked at most once a second, by events with a fact.
        """
        self._consumer = LineLog() if consumer is None else consumer
        self._ask_cores = cores
        self._cores: Cores | None = None
        self._asked = -CORES_EVERY_S
        self._started = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    def __call__(self, stage: str, text: str, fact: Training | Trials | None = None) -> None:
        """Tell something about a stage (`data`, `train`, `search`, ...)."""
        cores = self._used() if fact is not None else self._cores
        self._consumer.show(Event(stage, text, self.seconds, fact, cores))

    def _used(self) -> Cores | None:
        now = time.monotonic()
        if self._ask_cores is not None and now - self._asked >= CORES_EVERY_S:
            self._asked, self._cores = now, self._ask_cores()
        return self._cores
