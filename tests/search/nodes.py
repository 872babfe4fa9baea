"""Three Ray nodes on this machine, whose deaths are noticed soon."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.cluster_utils import Cluster

GIB = 2**30
CORES = 2
"""Of each working node; the head has none."""
_MEMORY_BYTES = {"a": 4 * GIB, "b": GIB}
"""By Ray's books, by the label `zone`."""
_SOON = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
    "RAY_health_check_initial_delay_ms": "500",
}


class Nodes:
    """The driver's head, and two nodes with cores, `a` and `b`."""

    def __init__(self, dashboard: int | None = None) -> None:
        head: dict[str, Any] = {
            "num_cpus": 0,
            "include_dashboard": dashboard is not None,
            "object_store_memory": 80 * 2**20,
        }
        if dashboard is not None:
            head |= {"dashboard_port": dashboard, "dashboard_host": "127.0.0.1"}
            head |= {"dashboard_agent_listen_port": _free_port()}
        self._agents = dashboard is not None
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self._lost: set[str] = set()
        self._folders: list[str] = []
        self.a, self.b = self._add("a"), self._add("b")

    @property
    def address(self) -> str:
        """For `RAY_ADDRESS`."""
        return str(self.cluster.address)

    def kill(self, node_id: str) -> None:
        """SIGKILL for all processes of a working node."""
        (node,) = (node for node in (self.a, self.b) if node.node_id == node_id)
        self._lost.add(node_id)
        self.cluster.remove_node(node, allow_graceful=False)

    def restore(self) -> None:
        """Start another node in place of each that was killed."""
        if self.a.node_id in self._lost:
            self.a = self._add("a")
        if self.b.node_id in self._lost:
            self.b = self._add("b")

    def remove_folders(self) -> None:
        """Remove what the nodes wrote."""
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _add(self, zone: str) -> Any:
        agent: dict[str, Any] = {}
        if self._agents:
            # Of its own: each node unpacks a job's working directory anew, from under those who use it.
            folder = tempfile.mkdtemp(prefix="ray-")
            self._folders.append(folder)
            agent = {"dashboard_agent_listen_port": _free_port(), "temp_dir": folder}
        return self.cluster.add_node(
            **agent,
            num_cpus=CORES,
            memory=_MEMORY_BYTES[zone],
            labels={"zone": zone},
            object_store_memory=80 * 2**20,
        )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def nodes(dashboard: int | None = None) -> Iterator[Nodes]:
    """The nodes, with this process connected to the head; with a dashboard, where a port is given for it."""
    before = {name: os.environ.get(name) for name in _SOON}
    os.environ.update(_SOON)
    found = Nodes(dashboard)
    try:
        ray.init(address=found.address, log_to_driver=False, logging_level=logging.ERROR)
        yield found
    finally:
        ray.shutdown()
        found.cluster.shutdown()
        found.remove_folders()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
