"""The port of a replica that takes calls of other deployments: on its node's own address alone.

Ray Serve (2.60) opens it in every replica, whatever the HTTP host, on `[::]`; whoever reaches it is not asked
who they are, and what they send is unpickled. Callers use the node's address, which is 127.0.0.1 where the
cluster is this machine alone, so nothing else needs to be bound.
"""

from __future__ import annotations

import functools
from typing import Any

import ray
from ray.serve._private import replica

from orchestrator.errors import ServingError

EVERYWHERE = "[::]:0"
NAME = "add_port_to_grpc_server"


def close_call_port() -> None:
    """Called by every deployment's constructor, which Serve runs before it opens the port.

    Raises:
        ServingError: this Ray opens it in another way than is known.
    """
    opened = getattr(replica, NAME, None)
    if opened is None:
        raise ServingError(
            "this Ray opens a replica's call port in another way than is known",
            ray.__version__,
            "use the pinned version",
        )
    if not isinstance(opened, functools.partial):
        setattr(replica, NAME, functools.partial(_on_the_node, opened))


def _on_the_node(opened: Any, server: Any, address: str) -> int:
    if address != EVERYWHERE:
        raise ServingError("this Ray opens a replica's call port elsewhere than is known", address)
    node = ray.util.get_node_ip_address()
    port: int = opened(server, f"[{node}]:0" if ":" in node else f"{node}:0")
    return port
