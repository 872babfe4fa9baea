"""Counts and timings of one process, as plain data that can be sent to whoever shows them.

The usual client library keeps its registry in one process. Here a request crosses several (ingress, ensemble,
members), each with a `Meter`; the ingress gathers their snapshots and writes them as one page, each series
under the replica that counted it, so that a restarted replica looks to Prometheus like any restart.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from deployments.observe.families import FAMILIES, Family

Labels = tuple[str, ...]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Snapshot:
    """What one process had counted at one moment."""

    replica: str
    numbers: Mapping[tuple[str, Labels], float]
    """Counters and gauges by family and labels."""
    histograms: Mapping[tuple[str, Labels], tuple[float, ...]]
    """Observations in each bucket, one more for those above all bounds, and their sum."""


@dataclass
class Meter:
    """Takes what callers see. A call costs about a microsecond, and may come from any thread."""

    replica: str
    """Distinguishes this process's series."""
    _numbers: dict[tuple[str, Labels], float] = field(default_factory=dict)
    _histograms: dict[tuple[str, Labels], list[float]] = field(default_factory=dict)
    _watched: dict[tuple[str, Labels], list[Callable[[], float]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, family: Family, *labels: str, amount: float = 1.0) -> None:
        """Raise a counter."""
        key = family.name, labels
        with self._lock:
            self._numbers[key] = self._numbers.get(key, 0.0) + amount

    def set(self, family: Family, *labels: str, to: float) -> None:
        """Set a gauge."""
        with self._lock:
            self._numbers[family.name, labels] = to

    def observe(self, family: Family, *labels: str, value: float) -> None:
        """Put one observation into a histogram."""
        key = family.name, labels
        with self._lock:
            counts = self._histograms.get(key)
            if counts is None:
                counts = self._histograms[key] = [0.0] * (len(family.buckets) + 2)
            counts[bisect_left(family.buckets, value)] += 1.0
            counts[-1] += value

    def watch(self, family: Family, *labels: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is looked at; several of the same labels are added."""
        with self._lock:
            self._watched.setdefault((family.name, labels), []).append(value)

    def number(self, family: Family, *labels: str) -> float:
        """A counter or gauge as it stands; 0 when nothing was counted."""
        return self._numbers.get((family.name, labels), 0.0)

    def snapshot(self) -> Snapshot:
        with self._lock:
            found = {key: tuple(counts) for key, counts in self._histograms.items()}
            read = {key: float(sum(one() for one in values)) for key, values in self._watched.items()}
            return Snapshot(self.replica, self._numbers | read, found)


def numbers(snapshots: Iterable[Snapshot], family: Family) -> dict[Labels, float]:
    """A counter or gauge by labels; several processes' are added."""
    found: dict[Labels, float] = {}
    for snapshot in snapshots:
        for (name, labels), value in snapshot.numbers.items():
            if name == family.name:
                found[labels] = found.get(labels, 0.0) + value
    return found


def histograms(snapshots: Iterable[Snapshot], family: Family) -> dict[Labels, list[float]]:
    """A histogram's buckets and sum by labels; several processes' are added."""
    found: dict[Labels, list[float]] = {}
    for snapshot in snapshots:
        for (name, labels), counts in snapshot.histograms.items():
            if name == family.name:
                before = found.setdefault(labels, [0.0] * len(counts))
                found[labels] = [a + b for a, b in zip(before, counts, strict=True)]
    return found


def exposition(snapshots: Sequence[Snapshot]) -> str:
    """All series in Prometheus's text format.

    https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    lines: list[str] = []
    for family in FAMILIES:
        series = [line for snapshot in snapshots for line in _series(family, snapshot)]
        if series:
            lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}", *series]
    return "\n".join(lines) + "\n"


def _series(family: Family, snapshot: Snapshot) -> Iterable[str]:
    for (name, labels), value in snapshot.numbers.items():
        if name == family.name:
            yield f"{name}{{{_pairs(family, labels, snapshot)}}} {value:.17g}"
    for (name, labels), counts in snapshot.histograms.items():
        if name == family.name:
            pairs, below = _pairs(family, labels, snapshot), 0.0
            for bound, count in zip((*family.buckets, float("inf")), counts[:-1], strict=True):
                below += count
                text = "+Inf" if bound == float("inf") else f"{bound:g}"
                yield f'{name}_bucket{{{pairs},le="{text}"}} {below:.17g}'
            yield f"{name}_sum{{{pairs}}} {counts[-1]:.17g}"
            yield f"{name}_count{{{pairs}}} {below:.17g}"


def _pairs(family: Family, labels: Labels, snapshot: Snapshot) -> str:
    named = zip((*family.labels, "replica"), (*labels, snapshot.replica), strict=True)
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in named)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
