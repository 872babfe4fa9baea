"""Three Ray nodes on this machine, whose deaths are noticed soon."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.cluster_utils import Cluster

GIB = 2**30
CORES = 2
"""Of each working node; the head has none."""
_SOON = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
    "RAY_health_check_initial_delay_ms": "500",
}


class Nodes:
    """The driver's head, and two nodes with cores: `a` (4 GiB of memory by Ray's books) and `b` (1 GiB)."""

    def __init__(self) -> None:
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 * 2**20}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.a = self.add("a", 4 * GIB)
        self.b = self.add("b", GIB)

    @property
    def address(self) -> str:
        """For `RAY_ADDRESS`."""
        return str(self.cluster.address)

    def add(self, zone: str, memory_bytes: int) -> Any:
        """Start a node that carries the label `zone`."""
        return self.cluster.add_node(
            num_cpus=CORES, memory=memory_bytes, labels={"zone": zone}, object_store_memory=80 * 2**20
        )

    def kill(self, node: Any) -> None:
        """SIGKILL for all of a node's processes."""
        self.cluster.remove_node(node, allow_graceful=False)


@contextmanager
def nodes() -> Iterator[Nodes]:
    """The nodes, with this process connected to the head."""
    before = {name: os.environ.get(name) for name in _SOON}
    os.environ.update(_SOON)
    found = Nodes()
    try:
        ray.init(address=found.address, log_to_driver=False, logging_level=logging.ERROR)
        yield found
    finally:
        ray.shutdown()
        found.cluster.shutdown()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
