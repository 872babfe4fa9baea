"""Where the members of an ensemble run: as deployments of their own, or in the process of the ingress."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import ray
from ray.serve.handle import DeploymentHandle

from deployments.composed import Composed
from deployments.exchange import fair_s
from deployments.fused import Fused, fallbacks, note_fallbacks, opened_groups
from deployments.group import Group
from deployments.observe import families
from deployments.observe.members import batches
from deployments.observe.meter import Meter, Snapshot
from deployments.observe.replicas import this_replica
from deployments.pool import Pool
from deployments.releases.follower import Follower
from orchestrator.config.base import fingerprint
from orchestrator.config.ensemble import Cascade, Combined, Member, Spec, walk_nodes
from orchestrator.config.serving import AppSettings, Placement
from orchestrator.ensemble.node import identity
from orchestrator.ensemble.tree import distinct
from orchestrator.errors import StoreError
from orchestrator.measure.machine import machine, machine_fingerprint
from orchestrator.models.build import example_inputs
from orchestrator.runtime import execute
from orchestrator.runtime.allocator import keep_freed_memory
from orchestrator.store.store import Store

HOPS = 2
"""Of a request to a member that is a deployment: ingress to ensemble, ensemble to member."""
CALLS = 15
"""Measured calls; the median counts."""
HANG_SHARE = 0.5
"""Of the deadline: a piece of a fused call that takes longer is given up where a quorum can answer without
its members. Members with a quorum are waited for until 0.8 of it; in between, the others are computed."""
MEMORY_SHARE = 0.5
"""Largest share of the machine's memory for the weights of all replicas of a fused ensemble."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    """Where an ensemble's members run, and why."""

    placement: Placement
    reason: str


class Here:
    """What the ingress needs to run an ensemble's members, some or all, in its own process.

    Args:
        settings: of the application.
        handles: of the distinct members that are deployments of their own.
        name: ref of the ensemble whose live release runs; empty: what is opened stays.
    """

    def __init__(self, settings: AppSettings, handles: dict[Member, Any], name: str = "") -> None:
        self._settings = settings
        self._handles = {identity(member): handle for member, handle in handles.items()}
        self.name = name

    def open(self, spec: Spec) -> Fused | Mixed:
        """Load the members of `spec`."""
        serving = self._settings.serving
        most = max(serving.options(member.name).max_queued_rows for member in distinct(spec.tree))
        store, allow = self._settings.store, self._settings.allow
        apart = {
            member: self._handles[identity(member)]
            for member in distinct(spec.tree)
            if identity(member) in self._handles
        }
        if apart or not needs_all(spec):
            return Mixed(spec, self._settings, apart, max_queued_rows=most)
        return Fused(
            spec,
            store,
            allow=allow,
            compiled=serving.compile,
            max_queued_rows=most,
            hang_s=serving.deadline_s,
            instances=serving.instances,
        )

    def follow(self, renewed: Callable[[Spec], None]) -> Follower:
        """Load the live release of the name, and follow it.

        Args:
            renewed: told the spec of each release that takes over.
        """
        serving = self._settings.serving
        return Follower(
            Store(self._settings.store, create=False),
            self.name,
            self.open,
            feedback=serving.feedback,
            renewed=renewed,
            fair_s=fair_s(serving.deadline_s),
        )


class Mixed(Composed):
    """A served ensemble of which some members, or all, run in this process.

    Args:
        spec: the fitted ensemble.
        settings: of the application.
        handles: of the members that are deployments of their own.
        max_queued_rows: most rows that may wait for members of this process.
    """

    def __init__(
        self,
        spec: Spec,
        settings: AppSettings,
        handles: dict[Member, DeploymentHandle[Any]],
        *,
        max_queued_rows: int,
    ) -> None:
        keep_freed_memory()
        serving = settings.serving
        load = partial(
            opened_groups,
            spec,
            settings.store,
            allow=settings.allow,
            compiled=serving.compile,
            elsewhere=handles,
        )
        self._pool = Pool(f"fused-{spec.name}", load, serving.instances)
        meter = Meter(f"{this_replica()}:{spec.name}")
        self.fallbacks = fallbacks(self._pool)
        note_fallbacks(meter, self._pool)
        timed = batches(meter, spec.name)
        self._groups = [
            Group(
                self._pool,
                place,
                hang_s=HANG_SHARE * serving.deadline_s,
                longest_s=serving.deadline_s,
                max_rows=spec.batch,
                max_queued_rows=max_queued_rows,
                timed=timed,
            )
            for place in range(len(self._pool.loaded()[0]))
        ]
        meter.watch(families.QUEUED_ROWS, spec.name, value=lambda: sum(one.queued for one in self._groups))
        here: dict[Member, Any] = {}
        for group in self._groups:
            here |= group.handles()
        found = [handles.get(member) or here[member] for member in distinct(spec.tree)]
        super().__init__(spec, found, serving, here=here, meter=meter)

    async def snapshots(self) -> list[Snapshot]:
        """As of `Composed`, and what hangs here."""
        self._meter.set(families.HANGING, self._spec.name, to=self._pool.calls_that_hang)
        return await super().snapshots()

    def check_health(self) -> None:
        """Called by Serve.

        Raises:
            MemberFailedError: calls hang.
        """
        self._pool.check_health()

    async def close(self) -> None:
        """Stop; nobody may ask any more."""
        await super().close()
        for group in self._groups:
            await group.close()
        self._pool.close()


def needs_all(spec: Spec) -> bool:
    """Whether every member must answer, and no promise is audited: then one walk can serve many requests."""
    return not any(
        isinstance(node, Combined)
        and (node.quorum is not None or (isinstance(node, Cascade) and node.certificate is not None))
        for node in walk_nodes(spec.tree)
    )


def places(spec: Spec, settings: AppSettings, store: Store) -> dict[Member, Placement]:
    """Where each distinct member of a spec runs."""
    chosen = settings.serving.placement
    own = {member: settings.serving.options(member.name).placement for member in distinct(spec.tree)}
    if chosen == "auto":
        chosen = "distributed" if all(own.values()) else decide(spec, settings, store).placement
    return {member: place or chosen for member, place in own.items()}


def decide(spec: Spec, settings: AppSettings, store: Store) -> Decision:
    """Choose by measurement on this machine; kept in the store, and from then on an input.

    Distributed where a member asks for accelerators, replicas or autoscaling of its own, or all weights do
    not fit; else where the slowest member and its hops take less time than all members one after the other,
    and there is a core for each. Throughput a core is never better distributed.
    """
    members = distinct(spec.tree)
    serving = settings.serving
    for member in members:
        asked = serving.options(member.name)
        if asked.gpus or asked.autoscaling or asked.replicas not in (None, serving.replicas):
            return _told(spec, "distributed", f"{member.name} has replicas or accelerators of its own")
    facts = machine()
    key = {
        "kind": "placement",
        "fingerprint": machine_fingerprint(facts),
        "threads": spec.threads,
        "replicas": serving.replicas,
    }
    digest = fingerprint(spec.plain())
    for record in store.records(digest):
        if key.items() <= record.items() and record.get("instances", 1) == serving.instances:
            return _told(spec, record["placement"], record["reason"])
    copies = serving.replicas * serving.instances
    found = choose(
        [_call_ms(store, member, spec, settings) for member in members],
        hop_ms=_hop_ms(spec),
        cores=facts["cores"] // spec.threads,
        weights_bytes=copies * sum(store.artifact_bytes(member.digest) for member in members),
        memory_bytes=facts["memory_bytes"],
    )
    record = {"instances": serving.instances, "placement": found.placement, "reason": found.reason}
    try:
        store.add_record(digest, {**key, **record, "time": time.time()})
    except StoreError as error:  # a store that is only read is served all the same
        logger.warning("%s: the placement is not kept: %s", spec.name, error)
    return _told(spec, found.placement, found.reason)


def choose(
    call_ms: Sequence[float], *, hop_ms: float, cores: int, weights_bytes: int, memory_bytes: int | None
) -> Decision:
    """The rule of `decide`.

    Args:
        call_ms: What one row takes each member.
        hop_ms: What one call from process to process takes.
        cores: That members could have, each its own.
        weights_bytes: Of all members in all replicas, in every copy.
        memory_bytes: Of the machine, where it is known.
    """
    if memory_bytes is not None and weights_bytes > MEMORY_SHARE * memory_bytes:
        share = f"{weights_bytes:,} of {memory_bytes:,} bytes"
        return Decision("distributed", f"the weights of all replicas need {share}")
    fused_ms, apart_ms = sum(call_ms), max(call_ms) + HOPS * hop_ms
    times = (
        f"one row takes all members {fused_ms:.2f} ms one after the other, the slowest {max(call_ms):.2f} ms"
        f" and {HOPS} hops {HOPS * hop_ms:.2f} ms"
    )
    if apart_ms < fused_ms and cores >= len(call_ms):
        return Decision("distributed", times)
    few = f"; {cores} cores for {len(call_ms)} members" if cores < len(call_ms) else ""
    return Decision("fused", times + few)


def _told(spec: Spec, placement: Placement, reason: str) -> Decision:
    logger.warning("%s is %s: %s", spec.name, placement, reason)
    return Decision(placement, reason)


def _call_ms(store: Store, member: Member, spec: Spec, settings: AppSettings) -> float:
    executable = execute.load(
        store,
        member.digest,
        member.execution,
        threads=spec.threads,
        batch=spec.batch,
        allowed=settings.allow,
    )
    row = example_inputs(spec.signature, 1)
    return _median_ms(lambda: executable(row))


class _Echo:
    """An actor that gives back what it gets."""

    def echo(self, rows: np.ndarray) -> np.ndarray:
        return rows


def _hop_ms(spec: Spec) -> float:
    """A call of an actor with one row, and its answer: what a hop costs at least."""
    actor: Any = ray.remote(num_cpus=0)(_Echo).remote()
    row = example_inputs(spec.signature, 1)
    try:
        return _median_ms(lambda: ray.get(actor.echo.remote(row)))
    finally:
        ray.kill(actor)


def _median_ms(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3
