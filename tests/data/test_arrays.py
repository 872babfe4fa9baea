"""Data sets from arrays in memory."""

from __future__ import annotations

import numpy as np

from orchestrator.config.data import Shares
from orchestrator.data.arrays import from_arrays


def test_another_cut_of_the_same_arrays_is_another_data_set() -> None:
    rows, targets = np.arange(600, dtype=np.float32).reshape(200, 3), np.arange(200) % 2
    plain = from_arrays(rows, targets)
    assert from_arrays(rows, targets, shares=Shares()).digest == plain.digest
    more = from_arrays(rows, targets, shares=Shares(train=0.65, validation=0.2))
    assert len(more.part("validation")) > len(plain.part("validation"))
    others = {more.digest, from_arrays(rows, targets, seed=1).digest}
    assert len(others - {plain.digest}) == 2
