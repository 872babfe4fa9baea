"""Work that goes on to its end where whoever asked for it goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


async def finished(work: Coroutine[Any, Any, T], kept: set[asyncio.Task[T]]) -> T:
    """The work's result; where the caller is cancelled, it is done all the same.

    Serve cancels what is called on behalf of a request with that request, and knows it by the context.

    Args:
        work: what to do.
        kept: holds the task meanwhile, since the event loop would not keep it.
    """
    task = asyncio.create_task(work, context=Context())
    kept.add(task)

    def ended(task: asyncio.Task[T]) -> None:
        kept.discard(task)
        if not task.cancelled():
            task.exception()  # looked at: whoever asked may be gone

    task.add_done_callback(ended)
    return await asyncio.shield(task)
