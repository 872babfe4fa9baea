"""Items that wait at the same time cross to another process as one call.

A call of Ray Serve costs both processes milliseconds, whatever it carries (docs/results/serving.md), and a
bundle one such call for all its items. Each item has its own answer, failure and deadline; nothing waits
where calls are few.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from orchestrator.errors import MemberFailedError, OrchestratorError

Q = TypeVar("Q")
A = TypeVar("A")

MOST_BYTES = 64 * 1024
"""Of a bundle of several items. Ray sends arguments of more than 100 KiB through its object store, which
takes longer than two calls."""


@dataclass(eq=False)
class _Item(Generic[Q, A]):
    value: Q
    answer: asyncio.Future[A]
    context: Context = field(default_factory=copy_context)
    """Of who asks: a call for one item alone belongs to its request and trace."""
    together: _Bundle[Q, A] | None = None


@dataclass(eq=False)
class _Bundle(Generic[Q, A]):
    items: list[_Item[Q, A]]
    sending: asyncio.Task[None] | None = None


@dataclass(eq=False)
class Bundler(Generic[Q, A]):
    """Asks for single items, in bundles.

    Those that ask in the same turn of the event loop go together. With `slots`, those that ask while so many
    calls run wait for one of them to end, but never longer than `linger_s`.

    Args:
        send: gives an answer or an error for each item, in their order; cancelled when nobody waits any more.
        bytes_of: of an item.
        slots: calls beyond which items wait.
        linger_s: longest wait for a slot.
    """

    send: Callable[[list[Q]], Awaitable[Sequence[A | OrchestratorError]]]
    bytes_of: Callable[[Q], int]
    slots: float = math.inf
    linger_s: float = 0.0
    _waiting: list[_Item[Q, A]] = field(default_factory=list)
    _running: int = 0
    _due: asyncio.Handle | None = None

    async def ask(self, value: Q) -> A:
        """The item's answer.

        Raises:
            OrchestratorError: the item's, or that of the whole call.
        """
        loop = asyncio.get_running_loop()
        item: _Item[Q, A] = _Item(value, loop.create_future())
        self._waiting.append(item)
        if self._due is None:
            wait_s = 0.0 if self._running < self.slots else self.linger_s
            self._due = loop.call_later(wait_s, self._flush) if wait_s else loop.call_soon(self._flush)
        try:
            return await item.answer
        except asyncio.CancelledError:
            bundle = item.together
            if bundle is not None and bundle.sending is not None and _abandoned(bundle.items):
                bundle.sending.cancel()
            raise

    def _flush(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        waiting = [item for item in self._waiting if not item.answer.done()]
        self._waiting = []
        for items in self._cut(waiting):
            self._start(_Bundle(items))

    def _cut(self, items: Sequence[_Item[Q, A]]) -> list[list[_Item[Q, A]]]:
        """Bundles of one item, or of at most `MOST_BYTES`."""
        found: list[list[_Item[Q, A]]] = []
        size = 0
        for item in items:
            own = self.bytes_of(item.value)
            if found and size + own <= MOST_BYTES:
                found[-1].append(item)
                size += own
            else:
                found.append([item])
                size = own
        return found

    def _start(self, bundle: _Bundle[Q, A]) -> None:
        for item in bundle.items:
            item.together = bundle
        self._running += 1
        # Serve cancels what is called on behalf of a request with that request: several share this call.
        context = Context() if len(bundle.items) > 1 else bundle.items[0].context
        bundle.sending = asyncio.get_running_loop().create_task(self._deliver(bundle.items), context=context)

    async def _deliver(self, items: Sequence[_Item[Q, A]]) -> None:
        try:
            answers = await self.send([item.value for item in items])
            for item, answer in zip(items, answers, strict=True):
                if item.answer.done():
                    continue
                if isinstance(answer, OrchestratorError):
                    item.answer.set_exception(answer)
                else:
                    item.answer.set_result(answer)
        except Exception as error:
            for item in items:
                if not item.answer.done():
                    item.answer.set_exception(error)
        finally:
            for item in items:
                item.answer.cancel()  # nothing happens to those that are done
            self._running -= 1
            if self._waiting and self._running < self.slots:
                self._flush()


async def answer_each(ask: Callable[[Q], Awaitable[A]], items: Sequence[Q]) -> list[A | OrchestratorError]:
    """Answers or errors of all items of a bundle, asked side by side."""

    async def one(item: Q) -> A | OrchestratorError:
        try:
            return await ask(item)
        except OrchestratorError as error:
            return error
        except Exception as error:  # a defect met one item, and must not fail the others
            return MemberFailedError("a replica failed", f"{type(error).__name__}: {error}")

    return await asyncio.gather(*(one(item) for item in items))


def _abandoned(items: Sequence[_Item[Q, A]]) -> bool:
    return all(item.answer.cancelled() for item in items)
