"""Latency of stored artifacts: measured once a machine, recorded, and from then on an input."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy.typing as npt
import torch

from orchestrator.config.measure import Execution, LatencySettings, Target
from orchestrator.errors import CompressionError, ExecutionError, OrchestratorError, first_line
from orchestrator.measure.latency import METHOD, Call, Latency, Merits, Race, Rival, compare
from orchestrator.measure.machine import machine, machine_fingerprint
from orchestrator.models.build import example_inputs
from orchestrator.runtime.allocator import keep_freed_memory
from orchestrator.runtime.execute import Executable, load
from orchestrator.store.store import Store

Subject = tuple[str, Execution]
"""(artifact digest, execution)."""
_EAGER: Execution = "eager"
_CANNOT_RUN = (ExecutionError, CompressionError, RuntimeError)
"""What an artifact that cannot run here raises: its own execution's error, an int8 graph's, or torch's."""


class Bench:
    """Measures artifacts of one store under one setting in this process, with what it has loaded before."""

    def __init__(
        self,
        store: Store,
        settings: LatencySettings,
        *,
        allowed: Collection[str] = (),
        fingerprint: str | None = None,
    ) -> None:
        """For `settings` of the store's artifacts.

        Args:
            store: Where artifacts and records are.
            settings: Batch, threads, blocks; of a `Target` also the resource, whose nodes are a bench apart.
            allowed: Import paths that the artifacts may be built from.
            fingerprint: Of the machine whose records are meant, where it is not this one.
        """
        keep_freed_memory()
        self.settings = settings
        self.facts = machine()
        self.fingerprint = fingerprint or machine_fingerprint(self.facts)
        self._store, self._allowed = store, allowed
        self._ready: dict[Subject, Call] = {}
        self._failed: dict[Subject, str] = {}

    def recorded(self, subject: Subject, baseline: str | None = None) -> dict[str, Any] | None:
        """The subject's latency as first measured on this bench, against a baseline where one is given."""
        digest, execution = subject
        key = {
            "kind": "latency",
            "method": METHOD,
            "execution": execution,
            "batch": self.settings.batch,
            "threads": self.settings.threads,
            "fingerprint": self.fingerprint,
            **({} if baseline is None else {"baseline": baseline}),
        }
        fitting = [
            record
            for record in self._store.records(digest)
            if key.items() <= record.items() and record.get("bench") == self._name
        ]
        return min(fitting, key=lambda record: float(record["time"]), default=None)

    def prepare(self, baseline: str, subjects: Iterable[Subject]) -> None:
        """Load and run what is not recorded yet, so that `measure` need not; that tells what cannot run."""
        missing = [subject for subject in subjects if self.recorded(subject, baseline) is None]
        with _threads(self.settings.threads):
            for subject in [(baseline, _EAGER), *missing] if missing else ():
                self._failed.pop(subject, None)
                with suppress(OrchestratorError):  # any other error: `measure` meets and raises it
                    try:
                        self._ready[subject] = self._call(subject)
                    except _CANNOT_RUN as error:
                        self._failed[subject] = _why(error)

    def measure(
        self,
        baseline: str,
        subjects: Sequence[Subject],
        merits: Mapping[Subject, Merits] | None = None,
        rivals: Sequence[Rival] = (),
    ) -> list[dict[str, Any]]:
        """As `measure_artifacts`; subjects with `merits` race with each other and with the rivals."""
        found = {subject: self.recorded(subject, baseline) for subject in dict.fromkeys(subjects)}
        missing = [subject for subject, record in found.items() if record is None]
        if missing:
            race = Race({_key(subject): own for subject, own in (merits or {}).items()}, rivals)
            found.update(self._measured(baseline, missing, race))
        return [record for subject in subjects if (record := found[subject]) is not None]

    def again(self, baseline: str, subject: Subject) -> tuple[Latency, Latency]:
        """As `measure_again`."""
        reference: Subject = (baseline, _EAGER)
        with _threads(self.settings.threads):
            calls = {one: self._call(one) for one in (reference, subject)}
            found = self._compared(reference, calls, Race())
        return found[subject], found[reference]

    def share(self, subject: Subject, rows: int) -> float:
        """As `share_of_call`."""
        if rows == self.settings.batch:
            return 1.0
        digest, execution = subject
        key = {
            "kind": "share of a call",
            "method": METHOD,
            "rows": rows,
            "execution": execution,
            "batch": self.settings.batch,
            "threads": self.settings.threads,
            "fingerprint": self.fingerprint,
        }
        for record in self._store.records(digest):
            if key.items() <= record.items():
                return float(record["share"])
        with _threads(self.settings.threads):
            executable, inputs = self._loaded(subject)
            few = inputs[:rows]
            calls: dict[str, Call] = {"whole": lambda: executable(inputs), "few": lambda: executable(few)}
            share = 1 / compare(calls, self.settings, baseline="whole")["few"].ratio
        self._store.add_record(digest, {**key, "share": share, "machine": self.facts, "time": time.time()})
        return share

    def keep(self, baseline: str, digest: str, latency: Latency, reference_ms: float) -> None:
        """Record a latency at the pace of the baseline's own record, or of `reference_ms`."""
        known = self.recorded((baseline, _EAGER))
        if known is None and (digest, latency.execution) == (baseline, _EAGER):
            paced = latency  # what later ones are told at the pace of
        else:
            paced = latency.at_pace(float(known["median_ms"]) if known else reference_ms)
        record = {
            "kind": "latency",
            "method": METHOD,
            "digest": digest,
            **paced.plain(),
            "own_ms": latency.median_ms,
            "blocks": self.settings.blocks,
            "most_blocks": self.settings.most_blocks,
            "block_ms": self.settings.block_ms,
            "tolerance": self.settings.tolerance,
            "baseline": baseline,
            "bench": self._name,
            "machine": self.facts,
            "fingerprint": self.fingerprint,
            "time": time.time(),
        }
        self._store.add_record(digest, record)

    @property
    def _name(self) -> str | None:
        """The resource of the nodes that measure, which may be of the driver's kind and are quieter."""
        return self.settings.resource if isinstance(self.settings, Target) else None

    def _measured(
        self, baseline: str, subjects: Sequence[Subject], race: Race
    ) -> dict[Subject, dict[str, Any]]:
        """Records of the subjects, freshly measured; the baseline's is kept too when there is none."""
        records: dict[Subject, dict[str, Any]] = {}
        reference: Subject = (baseline, _EAGER)
        with _threads(self.settings.threads):
            calls = {reference: self._call(reference)}
            for subject in subjects:
                why = self._failed.pop(subject, None)
                if why is None:
                    try:
                        calls[subject] = calls.get(subject) or self._call(subject)
                        continue
                    except _CANNOT_RUN as error:
                        why = _why(error)
                records[subject] = {"digest": subject[0], "execution": subject[1], "error": why}
            latencies = self._compared(reference, calls, race)
        # The baseline stays loaded for the next subjects, and what was prepared for a later measurement.
        others = {subject: call for subject, call in self._ready.items() if subject not in calls}
        self._ready = {reference: calls[reference], **others}
        for subject, latency in latencies.items():
            if subject in subjects or self.recorded(subject) is None:
                self.keep(baseline, subject[0], latency, latencies[reference].median_ms)
            # Read back: should another process have been first, its record is the one that counts.
            record = self.recorded(subject, baseline)
            if record is not None:
                records[subject] = record
        return records

    def _compared(
        self, reference: Subject, calls: Mapping[Subject, Call], race: Race
    ) -> dict[Subject, Latency]:
        """Latencies of the calls, measured in turns, each against the reference's; the reference first."""
        names = {_key(subject): subject for subject in calls}
        found = compare(
            {name: calls[subject] for name, subject in names.items()},
            self.settings,
            baseline=_key(reference),
            executions={name: subject[1] for name, subject in names.items()},
            race=race,
        )
        return {names[name]: latency for name, latency in found.items()}

    def _call(self, subject: Subject) -> Call:
        """The subject loaded and run once: what cannot run fails here and not between others' blocks."""
        if subject in self._ready:
            return self._ready[subject]
        executable, inputs = self._loaded(subject)
        executable(inputs)
        return lambda: executable(inputs)

    def _loaded(self, subject: Subject) -> tuple[Executable, npt.NDArray[Any]]:
        """The subject ready to run, and a batch of example rows."""
        digest, execution = subject
        batch, threads = self.settings.batch, self.settings.threads
        inputs = example_inputs(self._store.manifest(digest).signature, batch)
        executable = load(self._store, digest, execution, threads=threads, batch=batch, allowed=self._allowed)
        return executable, inputs


def measure_artifacts(
    store: Store,
    baseline: str,
    subjects: Sequence[Subject],
    settings: LatencySettings,
    *,
    allowed: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Latency records of the subjects, in their order; those not yet in the store are measured together.

    What is missing is measured interleaved with the baseline in eager execution. Keep the machine quiet
    meanwhile.

    Args:
        store: Where artifacts and records are.
        baseline: Digest of the artifact that ratios are to.
        subjects: What to measure.
        settings: Batch, threads, blocks.
        allowed: Import paths that the artifacts may be built from.

    Returns:
        One dict a subject: `kind` ("latency"), `method` (`latency.METHOD`), `digest`, `batch`, `threads`,
        `execution`, `baseline`, `ratio` (baseline's time over its own), `ratio_ci`; `median_ms`, `ci` and
        `p95_ms` at the pace that the baseline had when it was first measured (`Latency.at_pace`), `own_ms` as
        it was measured; `tail`; `rounds` that were measured and the settings `blocks`, `most_blocks`,
        `block_ms`, `tolerance`; `bench`, `machine`, `fingerprint`, `time`. A subject that cannot run here has
        `digest`, `execution` and `error` instead, and is not recorded.
    """
    return Bench(store, settings, allowed=allowed).measure(baseline, subjects)


def measure_again(
    store: Store,
    baseline: str,
    subject: Subject,
    settings: LatencySettings,
    *,
    allowed: Collection[str] = (),
) -> tuple[Latency, Latency]:
    """The subject's latency and its eager baseline's, interleaved, now: no record is looked at or written.

    Both are as they are at this moment, not at the pace of an earlier record.

    Raises:
        ExecutionError: one of them cannot run here.
    """
    return Bench(store, settings, allowed=allowed).again(baseline, subject)


def share_of_call(
    store: Store, subject: Subject, settings: LatencySettings, *, rows: int = 1, allowed: Collection[str] = ()
) -> float:
    """Time of a call of fewer rows over that of a whole batch, in the executable made for the batch.

    Measured once a machine, both in turns, then read from its record.

    Raises:
        ExecutionError: the subject cannot run here.
    """
    return Bench(store, settings, allowed=allowed).share(subject, rows)


def keep_latency(
    store: Store, digest: str, baseline: str, latency: Latency, settings: LatencySettings
) -> None:
    """Note a latency that was measured elsewhere in this process, against `baseline` in eager execution.

    Args:
        store: Where the artifacts and records are.
        digest: Of the artifact that was measured.
        baseline: Digest of what it was measured against.
        latency: What was found; its batch and threads count, not those of `settings`.
        settings: How it was measured otherwise.
    """
    own = settings.model_copy(update={"batch": latency.batch, "threads": latency.threads})
    Bench(store, own).keep(baseline, digest, latency, latency.median_ms * latency.ratio)


def _why(error: Exception) -> str:
    """In one sentence: torch's errors go on with traces."""
    return str(error) if isinstance(error, OrchestratorError) else first_line(error)


def _key(subject: Subject) -> str:
    return "/".join(subject)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
