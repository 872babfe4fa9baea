"""What the ingress and an ensemble say to each other: plain data, whatever the placement.

The ingress knows HTTP and no tree; an ensemble knows its tree and no HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Question:
    """Rows to answer."""

    rows: np.ndarray
    """[N, ...] of the signature's shape and dtype; may be read-only."""
    timeout_s: float
    """Time that is left for the answer."""
    outputs: frozenset[str] = frozenset()
    """Names of the wanted outputs; none means those that every answer has."""
    request_id: str = ""
    """The client's or the ingress's, for logs and traces."""


@dataclass(frozen=True)
class Answer:
    """What an ensemble sends to the ingress."""

    outputs: dict[str, np.ndarray]
    """Arrays by their name in the protocol."""
    members: tuple[str, ...]
    """Names of the members that answered at least one row."""
    weight_epoch: int
    degraded: bool
    """Made without a member that should have answered."""
