"""How reports of workers reach the driver: a small actor that the driver empties.

Its module imports nothing heavy, so that the actor starts fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Mailbox = ActorHandle[Any]
SEND_TIMEOUT_S = 5.0


class _Mailbox:
    """Takes messages until the driver fetches them."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, Any]] = []

    def put(self, name: str, content: Any) -> None:
        """Add a message."""
        self._messages.append((name, content))

    def take(self) -> list[tuple[str, Any]]:
        """All messages since the last call."""
        taken, self._messages = self._messages, []
        return taken


def open_mailbox() -> Mailbox:
    """A mailbox on the driver's node: it is lost only with the driver."""
    remote: Any = ray.remote(_Mailbox)
    mailbox: Mailbox = remote.options(num_cpus=0, scheduling_strategy=on_this_node()).remote()
    return mailbox


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Where an actor is put that may be lost only with the driver."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def send(mailbox: Mailbox, name: str, content: Any) -> None:
    """Put a message and wait until it is there, so that it comes before what the sender does next.

    A mailbox that does not answer is no failure of the sender.
    """
    ray.wait([mailbox.put.remote(name, content)], timeout=SEND_TIMEOUT_S)


def deliver(mailbox: Mailbox, tell: Callable[[str, Any], None]) -> None:
    """Tell all messages since the last call, in the order in which they came."""
    messages: list[tuple[str, Any]] = ray.get(mailbox.take.remote())
    for name, content in messages:
        tell(name, content)
