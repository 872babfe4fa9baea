"""A Ray actor that measures latencies alone in its own process, away from the driver's and trials' work."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.config.measure import Target
from orchestrator.errors import ResourceError
from orchestrator.measure.artifacts import Bench, Subject
from orchestrator.measure.latency import Merits, Rival
from orchestrator.measure.machine import HELD_TO
from orchestrator.measure.turns import Turns
from orchestrator.store.store import Store


class BenchActor:
    """Opens the store on its node and measures there under one setting; takes and gives plain data."""

    def __init__(self, store: str, target: dict[str, Any], allowed: Sequence[str] = ()) -> None:
        """`target` is a `Target` as plain values."""
        self._bench = Bench(Store(store, create=False), Target(**target), allowed=allowed)
        self._turns = Turns(store)

    def machine(self) -> dict[str, Any]:
        """Facts of the machine (`measure.machine.machine`) that it measures on."""
        return self._bench.facts

    def prepare(self, baseline: str, subjects: Sequence[Subject]) -> None:
        """As `Bench.prepare`: meanwhile others may work."""
        self._bench.prepare(baseline, _plain(subjects))

    def measure(
        self,
        baseline: str,
        subjects: Sequence[Subject],
        merits: Sequence[tuple[Subject, Merits]] = (),
        rivals: Sequence[Rival] = (),
    ) -> list[dict[str, Any]]:
        """As `Bench.measure`, while all trials on this machine that use the store rest."""
        with self._turns.alone():
            return self._bench.measure(baseline, _plain(subjects), dict(merits), rivals)


def _plain(subjects: Sequence[Subject]) -> list[Subject]:
    return [(digest, execution) for digest, execution in subjects]


AVX2 = {HELD_TO: "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""Environment of a process whose kernels keep to AVX2; read when torch is loaded."""


def start(
    store: str,
    *,
    cpus: float = 1,
    allowed: Collection[str] = (),
    target: Target | None = None,
) -> ActorHandle[BenchActor]:
    """Start the actor in a running Ray.

    It is for the caller to keep the cluster quiet while it measures, and to end it with `ray.kill`.

    Args:
        store: Path or URI of the store, reachable from every node.
        cpus: Cores that it holds while it lives; at least the threads that are measured.
        allowed: Import paths that artifacts may be built from.
        target: Says on which nodes, with which instructions and how; on this machine's kind with all of them
            when not given.

    Raises:
        ResourceError: no node offers the target's resource.
    """
    target = target or Target()
    # Without reserved cores Ray could put it on a head that does no work.
    largest = max(ray.nodes(), key=lambda node: float(node["Alive"]) * node["Resources"].get("CPU", 0.0))
    options: dict[str, Any] = {"num_cpus": cpus, "max_restarts": 1}
    if target.resource is None:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(largest["NodeID"], soft=True)
    else:
        check_offered(target.resource)
        options["resources"] = {target.resource: 1}
    if target.isa == "avx2":
        options["runtime_env"] = {"env_vars": AVX2}
    handle = ray.remote(BenchActor).options(**options).remote(store, target.plain(), sorted(allowed))
    return cast("ActorHandle[BenchActor]", handle)


def check_offered(resource: str) -> None:
    """See that a node of the running Ray offers a target's resource.

    Raises:
        ResourceError: none does.
    """
    if ray.cluster_resources().get(resource, 0.0) < 1:
        raise ResourceError(
            "no node offers the resource of the target",
            resource,
            f"start a quiet node of that kind with `ray start --resources '{{\"{resource}\": 1}}'`",
        )
