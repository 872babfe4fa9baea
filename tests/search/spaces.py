"""Spaces for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.config.space import Config, Space

WHOLE = "none"
PRUNED = "prune_channels+recover"


def small(
    amounts: object = (0.25, 0.5),
    criteria: Sequence[str] = ("l2",),
    precisions: Sequence[str] = ("fp32", "bf16"),
    *,
    whole: bool = True,
    training: dict[str, Any] | None = None,
) -> Space:
    """Whole or pruned and recovered, then a number type; `amounts` may be a range."""
    free = amounts if isinstance(amounts, dict) else {"choice": list(amounts)}  # type: ignore[call-overload]
    pruned = [
        {"kind": "prune_channels", "amount": free, "criterion": {"choice": list(criteria)}},
        {"kind": "recover", **({"training": training} if training else {})},
    ]
    types = [None if precision == "fp32" else {"kind": precision} for precision in precisions]
    first = {"choice": [None, pruned] if whole else [pruned]}
    return Space.model_validate({"plan": [first, {"choice": types, "name": "precision"}]})


def whole(precision: str = "fp32") -> Config:
    """The unpruned variant of a number type."""
    return {"prune_channels": WHOLE, "precision": precision}


def pruned(amount: float, criterion: str = "l2", precision: str = "fp32") -> Config:
    """A pruned one."""
    return {
        "prune_channels": PRUNED,
        "prune_channels.amount": amount,
        "prune_channels.criterion": criterion,
        "precision": precision,
    }


def amount_of(config: Config) -> float:
    """Share of channels that a config prunes."""
    return float(config.get("prune_channels.amount", 0.0))
