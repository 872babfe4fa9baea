"""Which rows a model learns from, when not from all: a pure function of (seed, number of rows)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.training import Sample

_STREAM = 0x5A3D1E
"""Keeps these draws apart from those of the row order."""


def drawn_rows(rows: int, settings: Sample | None, seed: int) -> NDArray[np.int64]:
    """Positions of the rows to learn from, rising; with replacement some stand more than once.

    Args:
        rows: how many there are.
        settings: how to draw; all rows when None.
        seed: of the training.
    """
    if settings is None:
        return np.arange(rows)
    count = max(1, round(settings.share * rows)) if rows else 0
    random = np.random.default_rng([seed, _STREAM])
    return np.sort(random.choice(rows, count, replace=settings.replacement))


def out_of_bag(rows: int, settings: Sample | None, seed: int) -> NDArray[np.int64]:
    """Positions of the rows that the model did not learn from, rising."""
    return np.setdiff1d(np.arange(rows), drawn_rows(rows, settings, seed))
