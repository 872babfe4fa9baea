"""Keeping what torch's tracers say about their own code from the user."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the tracer's deprecation warnings about its own code from the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
