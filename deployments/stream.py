"""Answers of an ensemble as they become known: of each stage of a cascade, then the whole one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

from deployments.exchange import Answer, Question

Predict = Callable[[Question], Awaitable[Answer]]


class InStages:
    """Gives a deployment that answers a way to do it in stages, which Serve can stream."""

    async def predict(self, question: Question) -> Answer:
        """Answer the rows."""
        raise NotImplementedError

    async def stream(self, question: Question) -> AsyncIterator[tuple[bool, Answer]]:
        """See `streamed`."""
        async for found in streamed(self.predict, question):
            yield found


async def streamed(predict: Predict, question: Question) -> AsyncIterator[tuple[bool, Answer]]:
    """Partial answers, then the whole one, each with whether it is the last.

    Raises:
        OrchestratorError: that of `predict`.
    """
    known: asyncio.Queue[Answer | None] = asyncio.Queue()
    asked = asyncio.ensure_future(predict(replace(question, told=known.put_nowait)))
    asked.add_done_callback(lambda _: known.put_nowait(None))
    try:
        while (partial := await known.get()) is not None:
            yield False, partial
        yield True, await asked
    finally:
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
