"""Members with made-up outputs, and trees of every kind over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.ensemble import Cascade, Member, Node, Parallel, WeightedMix
from orchestrator.ensemble.node import Output

A, B, C, D = (Member(name=name, digest=name * 64) for name in "abcd")
MEMBERS = (A, B, C, D)


def outputs(
    rows: int = 200, classes: int = 4, seed: int = 0
) -> tuple[dict[Member, npt.NDArray[np.float32]], npt.NDArray[np.int64]]:
    """Logits of four members, each better than the one before, and the labels."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(classes, size=rows)
    found = {
        member: (rng.normal(size=(rows, classes)) * 1.5 + (1 + skill) * np.eye(classes)[targets]).astype(
            np.float32
        )
        for skill, member in enumerate(MEMBERS)
    }
    return found, targets


def values(
    rows: int = 200, targets: int = 2, seed: int = 0
) -> tuple[dict[Member, npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    """Regression outputs of four members, each closer than the one before, and the targets."""
    rng = np.random.default_rng(seed)
    truth = (rng.normal(size=(rows, targets)) * [1, 100][:targets]).astype(np.float32)
    found = {
        member: (truth + rng.normal(size=truth.shape) * truth.std(axis=0) / (1 + skill)).astype(np.float32)
        for skill, member in enumerate(MEMBERS)
    }
    return found, truth


def lookup(table: dict[Member, Any]) -> dict[Member, Callable[[npt.NDArray[Any]], Output]]:
    """Members as functions of row numbers [n] (or [n, 1])."""

    def of(output: Output) -> Callable[[npt.NDArray[Any]], Output]:
        # Of a member that sees others, the row's number stands before what these said.
        return lambda rows: output[rows.reshape(len(rows), -1)[:, 0].astype(int)]

    return {member: of(output) for member, output in table.items()}


def cascade(*stages: Node, thresholds: tuple[float, ...] | None = None, **more: Any) -> Cascade:
    return Cascade(stages=stages, thresholds=thresholds, **more)


def mix(*members: Node, weights: tuple[float, ...] | None = None) -> WeightedMix:
    return WeightedMix(members=members, weights=weights)


def parallel(*members: Node) -> Parallel:
    return Parallel(members=members)
