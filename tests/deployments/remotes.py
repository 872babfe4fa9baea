"""Members that behave well or badly, as the walk's driver sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import numpy as np

from orchestrator.config.ensemble import Member
from tests.deployments.models import A, B

T = TypeVar("T")

INPUTS = np.random.default_rng(0).integers(0, 256, (6, 1, 2, 3), dtype=np.uint8)


def logits(inputs: np.ndarray, scale: float) -> np.ndarray:
    """A stand-in for a model: some rows are sure, some are not."""
    margin = (inputs.reshape(len(inputs), -1).astype(np.float32).mean(axis=1) - 127) * scale
    return np.stack([margin, -margin], axis=1)


IN_PROCESS: dict[Member, Callable[[np.ndarray], np.ndarray]] = {
    A: lambda inputs: logits(inputs, 0.03),
    B: lambda inputs: logits(inputs, -0.2),
}


class Remote:
    """A member that answers after a while, and notes what happens to it."""

    def __init__(self, member: Member, after_s: float = 0.0, error: Exception | None = None) -> None:
        self.member, self.after_s, self.error = member, after_s, error
        self.rows: list[int] = []
        self.cancelled = 0

    async def __call__(self, inputs: np.ndarray) -> np.ndarray:
        self.rows.append(len(inputs))
        try:
            await asyncio.sleep(self.after_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return IN_PROCESS[self.member](inputs)


def run(wait: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(wait, 60))


class Response:
    """A `DeploymentResponse` as `fetch` sees it."""

    def __init__(self, wait: Awaitable[Any]) -> None:
        self.wait = wait
        self.cancelled = False

    def __await__(self) -> Any:
        return self.wait.__await__()

    def cancel(self) -> None:
        self.cancelled = True


async def fail(error: Exception) -> None:
    raise error
