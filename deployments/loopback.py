"""Calls between replicas stay on this machine where Ray does.

Each replica of Ray Serve (2.60) has a gRPC server for calls of other deployments, which unpickles what it is
sent and asks nobody who he is. It listens on every interface whatever the node's address, and no setting
changes it.
"""

from __future__ import annotations

from typing import Any

import ray
from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica

LOOPBACK = "127.0.0.1"


def listen_where_ray_does() -> None:
    """Let this replica's server listen on loopback if its node does; called before Serve starts that server.

    On a node with an address of its own others must reach it: there a firewall or TLS is the operator's.
    """
    if ray.util.get_node_ip_address() == LOOPBACK:
        replica.add_port_to_grpc_server = _on_loopback  # type: ignore[attr-defined]


def _on_loopback(server: Any, address: str) -> int:
    port: int = add_port_to_grpc_server(server, address.replace("[::]", LOOPBACK))
    return port
