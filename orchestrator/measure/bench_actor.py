"""A Ray actor that measures latencies alone in its own process, away from the driver's and trials' work."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.config.measure import LatencySettings
from orchestrator.measure.artifacts import Subject, measure_artifacts
from orchestrator.store.store import Store


class BenchActor:
    """Opens the store on its node and measures there; takes and gives plain data."""

    def __init__(self, store: str, allowed: Sequence[str] = ()) -> None:
        self._store = Store(store, create=False)
        self._allowed = tuple(allowed)

    def measure(
        self, baseline: str, subjects: Sequence[Subject], settings: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """As `measure_artifacts`; `settings` are `LatencySettings` as plain values."""
        wanted = [(digest, execution) for digest, execution in subjects]
        return measure_artifacts(
            self._store, baseline, wanted, LatencySettings(**settings), allowed=self._allowed
        )


def start(
    store: str, *, cpus: float = 1, allowed: Collection[str] = (), name: str | None = None
) -> ActorHandle[BenchActor]:
    """Start the actor in a running Ray.

    It is for the caller to keep the cluster quiet while it measures, and to end it with `ray.kill`.

    Args:
        store: Path or URI of the store, reachable from every node.
        cpus: Cores that it holds while it lives; at least the threads that are measured.
        allowed: Import paths that artifacts may be built from.
        name: To find it again by.
    """
    # Without reserved cores Ray could put it on a head that does no work.
    largest = max(ray.nodes(), key=lambda node: float(node["Alive"]) * node["Resources"].get("CPU", 0.0))
    place = NodeAffinitySchedulingStrategy(largest["NodeID"], soft=True)
    options = {"num_cpus": cpus, "name": name, "max_restarts": 1, "scheduling_strategy": place}
    handle = ray.remote(BenchActor).options(**options).remote(store, sorted(allowed))
    return cast("ActorHandle[BenchActor]", handle)
