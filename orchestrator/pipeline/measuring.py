"""Latencies of a search's rows on a target: from the store, or from an actor that measures there alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator.config.measure import Target
from orchestrator.errors import OrchestratorError, SearchError
from orchestrator.measure import bench_actor
from orchestrator.measure.artifacts import Subject, recorded_latency
from orchestrator.pipeline.context import Run
from orchestrator.search.objectives import TrialRow


class Measurer:
    """Adds latencies to rows; the actor starts when it is first needed, and lives until `close`."""

    def __init__(self, run: Run, baseline: str, target: Target, name: str = "") -> None:
        """Measure against the artifact `baseline`; `name` of the target, empty for the search's own."""
        self._run, self._baseline, self._target, self._name = run, baseline, target, name
        self._actor: Any = None
        self.seconds = 0.0
        """That were spent in measuring; no trial ran meanwhile."""

    def __call__(self, rows: Sequence[TrialRow]) -> list[TrialRow]:
        """The rows in their order, each `ok` or failed with the reason.

        Raises:
            ResourceError: no node offers what the target asks for.
            SearchError: the actor was lost.
        """
        records = self._records([(row.digest, row.execution) for row in rows])
        found = (with_latency(row, record) for row, record in zip(rows, records, strict=True))
        return [replace(row, target=self._name) for row in found]

    def close(self) -> None:
        """End the actor, if there is one."""
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None

    def _records(self, subjects: list[Subject]) -> list[dict[str, Any]]:
        store, target = self._run.store, self._target
        # Elsewhere another machine measures: only the actor there knows what is recorded for it.
        if target.isa == "native" and target.resource is None:
            known = [recorded_latency(store, subject, target, self._baseline) for subject in subjects]
            if all(known):
                return [record for record in known if record is not None]
        if self._actor is None:
            self._run.cluster()
            # Idle trial workers keep their cores in Ray's books, so the actor asks for none.
            self._actor = bench_actor.start(str(store.root), cpus=0, allowed=self._run.allowed, target=target)
        begun = time.monotonic()
        try:
            records: list[dict[str, Any]] = ray.get(
                self._actor.measure.remote(self._baseline, subjects, target.plain())
            )
        except RayTaskError as error:
            if isinstance(error.cause, OrchestratorError):
                raise error.cause from None
            raise
        except RayError as error:
            reason = str(error).strip().partition("\n")[0]
            raise SearchError("the latencies could not be measured", reason, "run again") from error
        self.seconds += time.monotonic() - begun
        return records


def with_latency(row: TrialRow, record: dict[str, Any]) -> TrialRow:
    """The row with what was measured, or failed with the reason why it could not be."""
    if "error" in record:
        return row.failed(str(record["error"]))
    low, high = record["ci"]
    slow, fast = record["ratio_ci"]
    return row.measured(record["median_ms"], (low, high), record["ratio"], (slow, fast))
