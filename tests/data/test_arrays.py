"""Data sets from arrays in memory."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.config.data import Shares
from orchestrator.data.arrays import from_arrays
from orchestrator.errors import DataError


def test_another_cut_of_the_same_arrays_is_another_data_set() -> None:
    rows, targets = np.arange(600, dtype=np.float32).reshape(200, 3), np.arange(200) % 2
    plain = from_arrays(rows, targets)
    assert from_arrays(rows, targets, shares=Shares()).digest == plain.digest
    more = from_arrays(rows, targets, shares=Shares(train=0.65, validation=0.2))
    assert len(more.part("validation")) > len(plain.part("validation"))
    others = {more.digest, from_arrays(rows, targets, seed=1).digest}
    assert len(others - {plain.digest}) == 2


def test_values_that_are_missing_are_told_by_row() -> None:
    rows = np.ones((60, 2, 3), dtype=np.float32)
    rows[41, 1, 2] = np.nan
    with pytest.raises(DataError, match="row 41 of the arrays has a missing or not finite value"):
        from_arrays(rows, np.arange(60) % 2)


def test_targets_that_are_missing_are_told_by_row() -> None:
    targets = np.arange(60.0)
    targets[41] = np.nan
    with pytest.raises(DataError, match="row 41 of the arrays has a missing or not finite target"):
        from_arrays(np.ones((60, 3)), targets)


def test_other_names_of_the_same_classes_are_another_data_set() -> None:
    rows, targets = np.arange(600, dtype=np.float32).reshape(200, 3), np.arange(200) % 2
    names: list[tuple[str, ...]] = [(), ("cat", "dog"), ("dog", "cat")]
    found = [from_arrays(rows, targets, classes=classes).digest for classes in names]
    assert len(set(found)) == 3
    # As it was before names counted.
    assert found[0].startswith("d678ad7f8cf2")


def test_arrays_without_rows_are_told() -> None:
    with pytest.raises(DataError, match="the arrays have no rows"):
        from_arrays(np.zeros((0, 3)), np.zeros(0, dtype=np.int64))
