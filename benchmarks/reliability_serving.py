"""Serving across two nodes, of which one is killed under open-loop load without retries.

Three members with a quorum of two and two replicas each are on two nodes; the ingress is on the head, as
`orchestrator serve` has it. Replies are held against what their members say offline (`serving_faults`).
"""

from __future__ import annotations

import argparse
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray

from benchmarks.output import Ratio, Result
from benchmarks.serving_faults import (
    GOAL,
    PATIENCE_S,
    REPLICAS,
    ROWS,
    Offline,
    Sent,
    judged,
    prepare,
    request_body,
)
from deployments.local import serve_locally
from deployments.member import Member
from orchestrator.config.ensemble import Member as Leaf
from orchestrator.config.serving import AppSettings, MemberOptions, ServingSettings
from orchestrator.load.connection import Reply
from orchestrator.load.generate import open_loop
from orchestrator.load.request import post
from orchestrator.store.store import Store
from tests.architecture.modules import ROOT
from tests.pipeline.tiny import free_port
from tests.search.nodes import Nodes, nodes

FOLDER = "RELIABILITY_NODES"
"""Environment variable: folder with a file for each replica, which names its node."""
CPUS = 0.6
"""Of a replica: three on a node, so that all six need both nodes."""
DEADLINE_S = 2.0
LEAST_S, LEAST_RATE = 60.0, 50.0
RECOVERY_S, WHOLE_S = 60.0, 120.0


class NotedMember(Member):
    """A deployment of one member that says where it is."""

    def __init__(self, store: str, member: Leaf, **options: Any) -> None:
        super().__init__(store, member, **options)
        node = ray.get_runtime_context().get_node_id()
        (Path(os.environ[FOLDER]) / f"{member.name}-{os.getpid()}").write_text(node)


@dataclass(frozen=True)
class Moment:
    """A request's end."""

    at: float
    """Seconds since the load began."""
    whole: bool
    """Answered, by all members."""


@contextmanager
def _serving(store: Store, offline: Offline, folder: Path) -> Iterator[tuple[Nodes, str]]:
    options = {member.name: MemberOptions(cpus=CPUS, replicas=REPLICAS) for member in offline.outputs}
    settings = AppSettings(
        store=store.location,
        specs=(offline.spec,),
        serving=ServingSettings(
            port=free_port(),
            placement="distributed",
            compile=False,
            members=options,
            deadline_s=DEADLINE_S,
        ),
    )
    variables = {FOLDER: str(folder), "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    with (
        patch.dict(os.environ, variables),
        patch("deployments.members.Member", NotedMember),
        nodes() as cluster,
        serve_locally(settings, ready_s=300) as url,
    ):
        yield cluster, url


def measure(arguments: argparse.Namespace, folder: Path) -> Result:
    """Load for some time; after a third of it a node is killed, and at once another one takes its place."""
    places = folder / "places"
    places.mkdir()
    store = Store(folder / "store")
    offline = prepare(store)
    with _serving(store, offline, places) as (cluster, url):
        lost = cluster.b.node_id
        homes = [file.read_text() for file in places.iterdir()]
        if not 0 < homes.count(lost) < len(homes):
            raise RuntimeError(f"the replicas are not on both nodes: {homes}")
        load = _Load(url, offline, arguments)
        load.start()
        time.sleep(arguments.seconds / 3)
        killed_s = load.now()
        cluster.kill(lost)
        cluster.restore()
        wanted, restored_s = len(homes) + homes.count(lost), load.now()
        replaced_s = _waited_for(lambda: len(list(places.iterdir())) >= wanted) + restored_s - killed_s
        load.join()
    row = judged(load.sent, offline, DEADLINE_S)
    recovery_s = recovered_after(load.moments, killed_s)
    row |= {"replicas": len(homes), "replicas_lost": homes.count(lost), "killed_s": killed_s}
    enough = arguments.seconds >= LEAST_S and arguments.rate >= LEAST_RATE
    return [row | {"recovery_s": recovery_s, "replaced_s": replaced_s}], {
        "node lost under load: share answered": Ratio(row["answered"], GOAL, holds=enough),
        "node lost under load: wrong answers": Ratio(row["wrong"], 0, at_most=True, holds=enough),
        "node lost under load: seconds until all members answer again": Ratio(
            recovery_s, RECOVERY_S, at_most=True, holds=enough
        ),
        "node lost under load: seconds until all replicas are there again": Ratio(
            replaced_s, WHOLE_S, at_most=True, holds=enough
        ),
    }


class _Load(threading.Thread):
    """Requests at Poisson times, and what came of each."""

    def __init__(self, url: str, offline: Offline, arguments: argparse.Namespace) -> None:
        super().__init__(daemon=True)
        self._targets = [post(f"{url}/v2/models/mix/infer", request_body(row), {}) for row in offline.rows]
        self._arguments, self._begun = arguments, time.monotonic()
        self.sent: list[Sent] = []
        self.moments: list[Moment] = []

    def now(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._begun

    def run(self) -> None:
        """Until the last answer."""
        self._begun = time.monotonic()
        open_loop(
            self._targets,
            rate=self._arguments.rate,
            seconds=self._arguments.seconds,
            seed=self._arguments.seed,
            timeout_s=PATIENCE_S,
            seen=self._seen,
        )

    def _seen(self, number: int, reply: Reply | None, latency_s: float) -> None:
        self.sent.append(Sent(number % ROWS, reply, latency_s))
        whole = reply is not None and reply.status == 200 and b'"degraded":false' in _tight(reply.body)
        self.moments.append(Moment(self.now(), whole))


def _tight(body: bytes) -> bytes:
    return body.replace(b" ", b"")


def recovered_after(moments: Sequence[Moment], killed_s: float) -> float:
    """Seconds from the kill to the last request that some member did not answer; NaN if the load ended so."""
    ends = sorted(moments, key=lambda moment: moment.at)
    if not ends or not ends[-1].whole:
        return math.nan
    return max((one.at - killed_s for one in ends if not one.whole and one.at >= killed_s), default=0.0)


def _waited_for(ready: Callable[[], bool]) -> float:
    """Seconds until this holds; NaN when that takes too long."""
    begun = time.monotonic()
    while (waited := time.monotonic() - begun) < WHOLE_S:
        if ready():
            return waited
        time.sleep(0.1)
    return math.nan
