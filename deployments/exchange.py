"""What the ingress and an ensemble say to each other: plain data, whatever the placement.

The ingress knows HTTP and no tree; an ensemble knows its tree and no HTTP.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np

from deployments.protocol.model import Model

FAIR_S = 1.0
"""A client may leave less time than that for an answer; whoever is late then has shown nothing."""
FAIR_SHARE = 0.5
"""Likewise, of a deadline that is shorter."""


def fair_s(deadline_s: float) -> float:
    """Least time of a question that counts against those who do not answer it in time.

    Args:
        deadline_s: longest time for an answer.
    """
    return min(FAIR_S, FAIR_SHARE * deadline_s)


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
    encoded_by: str = ""
    """`Model.encoded_by` of the encoding that made the rows, where the ingress made them."""
    version: str = ""
    """The only one that may answer; any where it is empty."""
    told: Callable[[Answer], None] | None = None
    """Called with what each stage of a cascade says while later ones are asked; stays in this process."""


@dataclass(frozen=True)
class Answer:
    """What an ensemble sends to the ingress."""

    outputs: dict[str, np.ndarray]
    """Arrays by their name in the protocol."""
    members: tuple[str, ...]
    """Names of the members whose answers to at least one row were made use of."""
    weight_epoch: int
    degraded: bool
    """Made without a member that should have answered."""
    missing: tuple[str, ...] = ()
    """Names of the members that should have answered and did not."""
    ejected: tuple[str, ...] = ()
    """Names of the members that the guard found wrong; those that the tree cannot do without still answer."""
    expected: tuple[str, float] | None = None
    """Metric, and its value for answers made by exactly these members; None where it is not known."""
    version: str = ""
    """Of the model that made it, where releases change; else that of the model that was asked."""
    early_exit: bool = True
    """False: the audit of early exits has switched them off."""

    def with_outputs(self, outputs: dict[str, np.ndarray]) -> Answer:
        """The same with other outputs; `replace` takes three times as long."""
        return Answer(
            outputs,
            self.members,
            self.weight_epoch,
            self.degraded,
            self.missing,
            self.ejected,
            self.expected,
            self.version,
            self.early_exit,
        )

    def facts(self) -> dict[str, str | int | float | bool]:
        """How it was made: the protocol's response parameters."""
        found: dict[str, str | int | float | bool] = {
            "weight_epoch": self.weight_epoch,
            "degraded": self.degraded,
            "members_used": ",".join(self.members),
        }
        if self.missing:
            found["members_missing"] = ",".join(self.missing)
        if self.ejected:
            found["members_ejected"] = ",".join(self.ejected)
        if self.expected is not None:
            metric, value = self.expected
            found[f"expected_{metric}"] = value
        if not self.early_exit:
            found["early_exit"] = False
        return found


@dataclass(frozen=True)
class Served:
    """A model and how to ask it."""

    model: Model
    predict: Callable[[Question], Awaitable[Answer]]
    """Answers rows within the time that is left; raises an `OrchestratorError`."""
    ready: Callable[[], Coroutine[Any, Any, None]]
    """Returns when the model can answer, raises an `OrchestratorError` when not."""
