"""A run's events as scalars for TensorBoard: `tensorboard --logdir runs/NAME/tensorboard`.

    train/<model>      loss and validation metric of each epoch
    search/<trial>     the same of its recovery or training, its result, and its config as hyperparameters
    search             hypervolume over trials

Each of these folders has one file, to which whole batches of records are appended: a search of a thousand
trials needs no thousand open files and threads, as a writer for each would.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from tensorboardX.proto.event_pb2 import Event as Record
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import hparams

from orchestrator.progress import Event, Result, Training, Trials

FLUSH_S = 2.0
"""Longest time that an epoch waits in memory; results are written at once."""
FILE = "events.out.tfevents.0.orchestrator"
_LONGEST_NAME = 120
_HPARAMS = "_hparams_/session_start_info"

log = logging.getLogger(__name__)

Point = tuple[str, int]
"""Tag and step."""


class TensorBoard:
    """Writes what events carry, each point once, whatever is told again after a restart.

    Where a training or a search starts over and has other figures, the old ones are removed from there on.
    A folder that cannot be written costs the figures, never the run.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Write below `folder`; nothing is made before the first figure comes."""
        self._folder, self._clock = folder, clock
        self._logs: dict[str, _Log] = {}
        self._flushed = clock()
        self._broken = False

    def show(self, event: Event) -> None:
        """Take the figures of an event."""
        if self._broken:
            return
        try:
            if isinstance(event.fact, Training):
                self._epoch(event.stage, event.fact)
            elif isinstance(event.fact, Trials) and event.fact.result is not None:
                self._result(event.stage, event.fact, event.fact.result)
            if self._clock() - self._flushed >= FLUSH_S:
                self._flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Write what waits; more events may follow."""
        if self._broken:
            return
        try:
            self._flush()
        except OSError as error:
            self._give_up(error)

    def _epoch(self, stage: str, fact: Training) -> None:
        if fact.epoch and fact.loss is not None and fact.metric is not None:
            figures = {"loss": fact.loss, f"validation/{fact.metric_name}": fact.metric}
            self._log(f"{stage}/{_file_name(fact.name)}").epoch(figures, fact.epoch)

    def _result(self, stage: str, fact: Trials, result: Result) -> None:
        figures = {
            f"result/{fact.metric_name}": result.metric,
            "result/drop": result.drop,
            "result/latency_ms": result.latency_ms,
            "result/bytes": float(result.bytes),
        }
        trial = self._log(f"{stage}/{_file_name(result.name)}")
        trial.add(figures, 0, anew=True)
        trial.config(result.config)
        trial.flush()
        if result.number >= 0 and fact.hypervolume is not None:  # arms are no trials
            whole = self._log(stage)
            whole.add({"hypervolume": fact.hypervolume}, result.number + 1, anew=True)
            whole.flush()

    def _log(self, name: str) -> _Log:
        if name not in self._logs:
            self._logs[name] = _Log(self._folder / name / FILE)
        return self._logs[name]

    def _flush(self) -> None:
        self._flushed = self._clock()
        for found in self._logs.values():
            found.flush()

    def _give_up(self, error: OSError) -> None:
        self._broken = True
        log.warning("no more figures for TensorBoard: %s", error)


class _Log:
    """One file of records, and what is in it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._waiting: list[bytes] = []
        self._known: dict[Point, float] = {}
        if file.exists():
            self._read()

    def epoch(self, figures: Mapping[str, float], number: int) -> None:
        """An epoch, counted on over the steps of a plan; the first one begins the training anew."""
        self.add(figures, number, anew=number == 1)

    def add(self, figures: Mapping[str, float], step: int, *, anew: bool) -> None:
        """Keep what is not there yet; where figures differ the known ones stay, unless this is `anew`."""
        kept = {tag: _single(value) for tag, value in figures.items()}
        figures = {tag: value for tag, value in kept.items() if math.isfinite(value)}
        if anew and any(self._known.get((tag, step), value) != value for tag, value in figures.items()):
            self._remove(set(figures), step)
        new = {tag: value for tag, value in figures.items() if (tag, step) not in self._known}
        if new:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in new.items()]
            self._append(Summary(value=values), step)

    def config(self, values: Mapping[str, float | int | str | bool]) -> None:
        """The config of a trial, once."""
        if (_HPARAMS, 0) not in self._known and values:
            # Without an experiment's record TensorBoard takes the columns from all trials together.
            _, start, end = hparams(dict(values), {})
            self._append(start, 0)
            self._append(end, 0)

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("ab") as file:
            if not file.tell():
                file.write(_framed(Record(wall_time=time.time(), file_version="brain.Event:2")))
            file.write(b"".join(self._waiting))
        self._waiting = []

    def _remove(self, tags: set[str], step: int) -> None:
        """Forget these figures from a step on."""
        self.flush()
        self._known = {
            point: value for point, value in self._known.items() if point[0] not in tags or point[1] < step
        }
        kept = [
            _framed(record)
            for record, _ in _records(self._file.read_bytes())
            if record.step < step or not any(value.tag in tags for value in record.summary.value)
        ]
        part = self._file.with_name("part")
        part.write_bytes(b"".join(kept))
        part.replace(self._file)

    def _append(self, summary: Summary, step: int) -> None:
        self._waiting.append(_framed(Record(wall_time=time.time(), step=step, summary=summary)))
        self._learn(summary, step)

    def _learn(self, summary: Summary, step: int) -> None:
        for value in summary.value:
            self._known[value.tag, step] = value.simple_value

    def _read(self) -> None:
        """Learn what is there; from a record on that was cut short or damaged by a death all is cut off."""
        data = self._file.read_bytes()
        whole = 0
        for record, end in _records(data):
            self._learn(record.summary, record.step)
            whole = end
        if whole < len(data):
            os.truncate(self._file, whole)


def _records(data: bytes) -> Iterator[tuple[Record, int]]:
    """The whole records, each with the place of its end: length and its sum, content and its sum.

    What follows one that is damaged is lost, as where it begins is not known.
    """
    place = 0
    while place + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        end = place + 12 + length + 4
        content = data[place + 12 : end - 4]
        if end > len(data) or data[end - 4 : end] != _sum(content):
            return
        yield Record.FromString(content), end
        place = end


def _framed(record: Record) -> bytes:
    content: bytes = record.SerializeToString()
    head = struct.pack("<Q", len(content))
    return head + _sum(head) + content + _sum(content)


def _sum(part: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(part))


def _single(value: float) -> float:
    """As the records keep it; infinite where they cannot."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def _file_name(name: str) -> str:
    """A folder's name; a long one is cut, and told apart by a digest."""
    safe = re.sub(r"[^\w.,=+\[\] -]", "_", name).strip(" .") or "_"
    if len(safe) <= _LONGEST_NAME:
        return safe
    return f"{safe[:_LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
