"""Something that happens while a search runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """What a thread does while the block runs; it must come to its end."""
    errors: list[BaseException] = []

    def guard() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guard, daemon=True)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()
    assert not errors, errors
