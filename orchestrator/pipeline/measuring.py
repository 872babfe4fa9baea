"""Latencies of a search's rows on a target: from the store, or from an actor that measures there alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator.config.base import fingerprint
from orchestrator.config.claim import claim, remembered
from orchestrator.config.measure import Target
from orchestrator.errors import OrchestratorError, SearchError, first_line, last_line
from orchestrator.measure import bench_actor
from orchestrator.measure.artifacts import Bench, Subject
from orchestrator.measure.latency import Rival
from orchestrator.measure.machine import machine_fingerprint
from orchestrator.search.objectives import TrialRow, front_of, merits
from orchestrator.store.store import Store


@dataclass(frozen=True)
class Place:
    """What measurers of one run share."""

    store: Store
    connect: Callable[[], None]
    """Joins or starts Ray when it is first called."""
    folder: Path
    """Remembers, a file a target, on which machine it is measured."""
    allowed: Collection[str] = ()
    fresh: bool = False
    """Take the machine that there is now, whatever was remembered."""


class Measurer:
    """Adds latencies to rows; the actor starts when it is first needed, and lives until `close`.

    A run is measured on one kind of machine. Once its first latency is there, records of that machine alone
    count, and no other machine measures for it: latencies of two machines do not belong in one front.

    Trials race with each other and with the best that came before: one that is surely slower than another
    that is no worse and no larger gets no more blocks. Honest arms are measured to the end.
    """

    def __init__(self, place: Place, baseline: str, target: Target, name: str = "") -> None:
        """Measure against the artifact `baseline`; `name` of the target, empty for the search's own."""
        self._place, self._baseline, self._target, self._name = place, baseline, target, name
        self._file = place.folder / f"{fingerprint(target.plain())[:16]}.json"
        self._actor: Any = None
        self._bench = self._remembered()
        self._ahead: list[TrialRow] = []

    @property
    def machine(self) -> str:
        """Fingerprint of the machine that measures; the actor starts where it is not known yet."""
        return (self._bench or self.open()).fingerprint

    def __call__(self, rows: Sequence[TrialRow]) -> list[TrialRow]:
        """The rows in their order, each `ok` or failed with the reason.

        Raises:
            ConfigError: earlier latencies of the run were measured on another machine.
            ResourceError: no node offers what the target asks for.
            SearchError: the actor was lost.
        """
        found = [with_latency(row, record) for row, record in zip(rows, self._records(rows), strict=True)]
        self._ahead = front_of([*self._ahead, *(row for row in found if row.ok and not row.arm)])
        return [replace(row, target=self._name) for row in found]

    def open(self) -> Bench:
        """Start the actor, if it is not there; gives what it has recorded.

        Raises:
            ConfigError: earlier latencies of the run were measured on another machine.
            ResourceError: no node offers what the target asks for.
            SearchError: the actor was lost.
        """
        if self._actor is None:
            place = self._place
            place.connect()
            # Idle trial workers keep their cores in Ray's books, so the actor asks for none.
            self._actor = bench_actor.start(
                place.store.location, cpus=0, allowed=place.allowed, target=self._target
            )
            facts: dict[str, Any] = _got(self._actor.machine.remote())
            claim(
                self._file,
                {name: value for name, value in facts.items() if name != "memory_bytes"},
                "this run's latencies were measured on another machine",
                "go on there, take another run name, or pass --fresh to measure all of them here",
                fresh=place.fresh and self._bench is None,
            )
            self._bench = self._of(facts)
        assert self._bench is not None
        return self._bench

    def prepare(self, row: TrialRow) -> None:
        """Let the actor load an evaluated row's artifact while other trials run.

        Raises:
            ConfigError, ResourceError, SearchError: as `open`.
        """
        subject: Subject = (row.digest, row.execution)
        if self._bench is None or self._bench.recorded(subject, self._baseline) is None:
            self.open()
            self._actor.prepare.remote(self._baseline, [subject])

    def close(self) -> None:
        """End the actor, if there is one."""
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None

    def _records(self, rows: Sequence[TrialRow]) -> list[dict[str, Any]]:
        subjects: list[Subject] = [(row.digest, row.execution) for row in rows]
        if self._bench is not None:
            known = [self._bench.recorded(subject, self._baseline) for subject in subjects]
            if all(known):
                return [record for record in known if record is not None]
        bench = self.open()
        racing = [((row.digest, row.execution), merits(row)) for row in rows if not row.arm]
        rivals = [Rival(merits(row), row.speedup_ci[0]) for row in self._ahead]
        call = self._actor.measure.remote(self._baseline, subjects, racing, rivals)
        records: list[dict[str, Any]] = _got(call)
        if any(record.get("fingerprint", bench.fingerprint) != bench.fingerprint for record in records):
            raise SearchError(
                "the bench came back on another kind of machine", self._target.resource, "run again"
            )
        return records

    def _remembered(self) -> Bench | None:
        facts = None if self._place.fresh else remembered(self._file)
        return None if facts is None else self._of(facts)

    def _of(self, facts: dict[str, Any]) -> Bench:
        return Bench(self._place.store, self._target, fingerprint=machine_fingerprint(facts))


def with_latency(row: TrialRow, record: dict[str, Any]) -> TrialRow:
    """The row with what was measured, or failed with the reason why it could not be."""
    if "error" in record:
        return row.failed(str(record["error"]))
    low, high = record["ci"]
    slow, fast = record["ratio_ci"]
    return row.measured(record["median_ms"], (low, high), record["ratio"], (slow, fast), record.get("p95_ms"))


def _got(call: Any) -> Any:
    """What the actor answers; its errors of ours as they are.

    Raises:
        SearchError: the actor was lost, or what it measured failed.
    """
    try:
        return ray.get(call)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, OrchestratorError):
            raise cause from None
        reason = f"{type(cause).__name__}: {last_line(cause)}"
        raise SearchError("the latencies could not be measured", reason) from None
    except RayError as error:
        raise SearchError("the latencies could not be measured", first_line(error), "run again") from error
