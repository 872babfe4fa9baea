"""A simple batcher: while one batch is computed, the next one gathers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

MOST_ROWS = 32


class Batcher:
    """Calls `model` with the rows of several callers at once, in a thread.

    Args:
        model: rows [B, ...] to outputs [..., B, classes].
    """

    def __init__(self, model: Callable[[np.ndarray], np.ndarray]) -> None:
        self._model = model
        self._thread = ThreadPoolExecutor(1)
        self._waiting: list[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = []
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Outputs for these rows."""
        answer: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, answer))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        while self._waiting:
            batch = [self._waiting.pop(0)]
            size = len(batch[0][0])
            while self._waiting and size + len(self._waiting[0][0]) <= MOST_ROWS:
                batch.append(self._waiting.pop(0))
                size += len(batch[-1][0])
            rows = np.concatenate([rows for rows, _ in batch])
            outputs = await asyncio.get_running_loop().run_in_executor(self._thread, self._model, rows)
            start = 0
            for part, answer in batch:
                answer.set_result(outputs[..., start : start + len(part), :])
                start += len(part)
