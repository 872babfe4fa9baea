"""Latency of stored artifacts: measured once a machine, recorded, and from then on an input."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from orchestrator.config.measure import Execution, LatencySettings
from orchestrator.config.signature import Signature
from orchestrator.errors import ExecutionError
from orchestrator.measure.latency import Call, Latency, compare
from orchestrator.measure.machine import machine, machine_fingerprint
from orchestrator.runtime.execute import Executable, load
from orchestrator.store.store import Store

Subject = tuple[str, Execution]
"""(artifact digest, execution)."""
_EAGER: Execution = "eager"
_OWN = ("median_ms", "ci", "p95_ms")
"""What of a record does not depend on its baseline."""


@dataclass(frozen=True)
class _Bench:
    store: Store
    settings: LatencySettings
    allowed: Collection[str]
    facts: dict[str, Any]

    @property
    def machine(self) -> str:
        return machine_fingerprint(self.facts)


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
        One dict a subject: `kind` ("latency"), `digest`, `batch`, `threads`, `execution`, `median_ms`,
        `ci`, `p95_ms`, `blocks`, `block_ms`, `baseline`, `ratio` (baseline's time over its own),
        `ratio_ci`, `machine`, `fingerprint`, `time`. A latency that was recorded against another baseline
        comes as it is: `baseline` says which. A subject that cannot run here has `digest`, `execution` and
        `error` instead, and is not recorded.
    """
    bench = _Bench(store, settings, allowed, machine())
    found = {subject: _recorded(bench, subject, baseline) for subject in dict.fromkeys(subjects)}
    missing = [subject for subject, record in found.items() if record is None]
    if missing:
        found.update(_measure(bench, baseline, missing))
    return [record for subject in subjects if (record := found[subject]) is not None]


def recorded_latency(
    store: Store, subject: Subject, settings: LatencySettings, baseline: str | None = None
) -> dict[str, Any] | None:
    """The subject's latency on this machine as it was first measured, or None."""
    return _recorded(_Bench(store, settings, (), machine()), subject, baseline)


def measure_again(
    store: Store,
    baseline: str,
    subject: Subject,
    settings: LatencySettings,
    *,
    allowed: Collection[str] = (),
) -> tuple[Latency, Latency]:
    """The subject's latency and its eager baseline's, interleaved, now: no record is looked at or written.

    Raises:
        ExecutionError: one of them cannot run here.
    """
    bench, reference = _Bench(store, settings, allowed, machine()), (baseline, _EAGER)
    with _threads(settings.threads):
        calls = {reference: _call(bench, reference)}
        calls[subject] = calls.get(subject) or _call(bench, subject)
        found = _compared(bench, reference, calls)
    return found[subject], found[reference]


def share_of_call(
    store: Store, subject: Subject, settings: LatencySettings, *, rows: int = 1, allowed: Collection[str] = ()
) -> float:
    """Time of a call of fewer rows over that of a whole batch, in the executable made for the batch.

    Measured once a machine, both in turns, then read from its record.

    Raises:
        ExecutionError: the subject cannot run here.
    """
    if rows == settings.batch:
        return 1.0
    bench, (digest, execution) = _Bench(store, settings, allowed, machine()), subject
    key = {
        "kind": "share of a call",
        "rows": rows,
        "execution": execution,
        "batch": settings.batch,
        "threads": settings.threads,
        "fingerprint": bench.machine,
    }
    for record in store.records(digest):
        if key.items() <= record.items():
            return float(record["share"])
    with _threads(settings.threads):
        executable, inputs = _loaded(bench, subject)
        few = inputs[:rows]
        calls: dict[str, Call] = {"whole": lambda: executable(inputs), "few": lambda: executable(few)}
        share = 1 / compare(calls, settings, baseline="whole")["few"].ratio
    store.add_record(digest, {**key, "share": share, "machine": bench.facts, "time": time.time()})
    return share


def keep_latency(
    store: Store, digest: str, baseline: str, latency: Latency, settings: LatencySettings
) -> None:
    """Note a latency that was measured elsewhere in this process, against `baseline` in eager execution."""
    bench = _Bench(store, settings, (), machine())
    store.add_record(digest, _record(bench, baseline, digest, latency))


def example_inputs(signature: Signature, rows: int, seed: int = 0) -> npt.NDArray[Any]:
    """Random rows of the right shape and scale: uint8 [rows, C, H, W] or float32 [rows, F]."""
    rng = np.random.default_rng(seed)
    if signature.input_dtype == "uint8":
        return rng.integers(0, 256, size=(rows, *signature.input_shape), dtype=np.uint8)
    noise = rng.standard_normal((rows, *signature.input_shape))
    if len(signature.input_shape) == 1:
        noise = noise * np.asarray(signature.std) + np.asarray(signature.mean)
    return noise.astype(np.float32)


def _recorded(bench: _Bench, subject: Subject, baseline: str | None) -> dict[str, Any] | None:
    """The subject's oldest fitting record: later ones change no latency.

    With a baseline the ratio comes from the oldest record against that one; without such a record there is
    none to give.
    """
    digest, execution = subject
    key = {
        "kind": "latency",
        "execution": execution,
        "batch": bench.settings.batch,
        "threads": bench.settings.threads,
        "fingerprint": bench.machine,
    }
    fitting = [record for record in bench.store.records(digest) if key.items() <= record.items()]
    fitting.sort(key=lambda record: float(record["time"]))
    if not fitting or baseline is None:
        return fitting[0] if fitting else None
    against = next((record for record in fitting if record["baseline"] == baseline), None)
    return None if against is None else {**against, **{name: fitting[0][name] for name in _OWN}}


def _measure(bench: _Bench, baseline: str, subjects: Sequence[Subject]) -> dict[Subject, dict[str, Any]]:
    """Records of the subjects, freshly measured; the baseline's is kept too when there is none."""
    records: dict[Subject, dict[str, Any]] = {}
    reference: Subject = (baseline, _EAGER)
    with _threads(bench.settings.threads):
        calls = {reference: _call(bench, reference)}
        for subject in subjects:
            try:
                calls[subject] = calls.get(subject) or _call(bench, subject)
            except ExecutionError as error:
                records[subject] = {"digest": subject[0], "execution": subject[1], "error": str(error)}
        latencies = _compared(bench, reference, calls)
    for subject, latency in latencies.items():
        if subject in subjects or _recorded(bench, subject, baseline) is None:
            bench.store.add_record(subject[0], _record(bench, baseline, subject[0], latency))
        # Read back: should another process have been first, its record is the one that counts.
        record = _recorded(bench, subject, baseline)
        if record is not None:
            records[subject] = record
    return records


def _compared(bench: _Bench, reference: Subject, calls: dict[Subject, Call]) -> dict[Subject, Latency]:
    """Latencies of the calls, measured in turns, each against the reference's."""
    names = {"/".join(subject): subject for subject in calls}
    found = compare(
        {name: calls[subject] for name, subject in names.items()},
        bench.settings,
        baseline="/".join(reference),
        executions={name: subject[1] for name, subject in names.items()},
    )
    return {names[name]: latency for name, latency in found.items()}


def _record(bench: _Bench, baseline: str, digest: str, latency: Latency) -> dict[str, Any]:
    return {
        "kind": "latency",
        "digest": digest,
        **latency.plain(),
        "blocks": bench.settings.blocks,
        "block_ms": bench.settings.block_ms,
        "baseline": baseline,
        "machine": bench.facts,
        "fingerprint": bench.machine,
        "time": time.time(),
    }


def _call(bench: _Bench, subject: Subject) -> Call:
    """The subject loaded and run once, so that what cannot run fails here and not between others' blocks."""
    executable, inputs = _loaded(bench, subject)
    executable(inputs)
    return lambda: executable(inputs)


def _loaded(bench: _Bench, subject: Subject) -> tuple[Executable, npt.NDArray[Any]]:
    """The subject ready to run, and a batch of example rows."""
    digest, execution = subject
    batch, threads = bench.settings.batch, bench.settings.threads
    inputs = example_inputs(bench.store.manifest(digest).signature, batch)
    executable = load(bench.store, digest, execution, threads=threads, batch=batch, allowed=bench.allowed)
    return executable, inputs


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
