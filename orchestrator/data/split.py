"""Seeded, stratified cuts of one source into parts."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import numpy as np

from orchestrator.config.data import PARTS, PartName, Shares
from orchestrator.data.dataset import Array
from orchestrator.errors import DataError

LEAST_ROWS = 20
_FIRST: tuple[PartName, ...] = ("train", "test", "validation", "contract", "calibration")
"""Which parts the rows of a class go to that has too few for all."""


def free_shares(shares: Shares, named: Collection[PartName]) -> dict[PartName, float]:
    """What share of the training source each part gets that has no file of its own; they sum to 1.

    Without a test file, the test part is cut first; the other shares are of what is left and are scaled
    up for the parts that have files.
    """
    free: list[PartName] = [name for name in PARTS if name not in named and name != "test"]
    test = 0.0 if "test" in named else shares.test
    total = sum(getattr(shares, name) for name in free)
    found: dict[PartName, float] = {name: (1 - test) * getattr(shares, name) / total for name in free}
    return found if "test" in named else {**found, "test": test}


def cut(
    rows: int,
    labels: Array | None,
    shares: dict[PartName, float],
    *,
    seed: int,
    origin: str,
    classes: Sequence[str] = (),
    spread: bool = False,
) -> dict[PartName, Array]:
    """Row numbers of each part, in a random order that depends on `seed` and `rows` alone.

    With `labels` every class is cut by itself (largest remainder), and every part gets at least one row
    of every class. With `spread`, a class of too few rows for that gives one row each to train, test,
    validation, contract and calibration, as far as they go.

    Raises:
        DataError: there are too few rows, or a class has fewer rows than there are parts (none, to spread).
    """
    if rows < LEAST_ROWS:
        raise DataError(f"too few rows in {origin}", rows, f"at least {LEAST_ROWS} are needed")
    order = shuffled(rows, seed)
    names, wanted = list(shares), list(shares.values())
    numbers = np.arange(len(names))
    part_of = np.empty(rows, dtype=np.int64)
    if labels is None:
        part_of[order] = np.repeat(numbers, apportion(rows, wanted))
    else:
        owed = [0.0] * len(names)
        ordered = labels[order]
        for label, name in enumerate(classes):
            members = order[ordered == label]
            if spread and 0 < len(members) < len(names):
                part_of[members] = [names.index(part) for part in _FIRST if part in names][: len(members)]
                continue
            if len(members) < len(names):
                raise DataError(
                    f"class '{name}' of {origin} is too small to split into {len(names)} parts "
                    f"({', '.join(names)})",
                    f"{len(members)} rows",
                    f"give every class at least {len(names)} rows, name files for some of the parts, or set "
                    "data.small_classes: spread",
                )
            counts = apportion(len(members), wanted, owed)
            owed = [owed[k] + len(members) * wanted[k] - counts[k] for k in numbers]
            part_of[members] = np.repeat(numbers, counts)
    ordered_parts = part_of[order]
    return {name: order[ordered_parts == number] for number, name in enumerate(names)}


def shuffled(rows: int, seed: int) -> Array:
    """`int64` [rows]: the row numbers in a random order.

    Sorted uniform numbers of PCG64, whose stream is fixed, instead of `permutation`, whose algorithm
    may change between NumPy releases.
    """
    return np.argsort(np.random.Generator(np.random.PCG64(seed)).random(rows), kind="stable")


def fold_of(rows: int, folds: int) -> Array:
    """`int64` [rows]: the fold of each row, of nearly equal sizes; depends on the two numbers alone."""
    return np.random.default_rng(0).permutation(rows) % folds


def rows_digest(ids: Array) -> str:
    """Hex sha256 of which rows these are, in whatever order."""
    return hashlib.sha256(np.sort(ids).astype("<i8").tobytes()).hexdigest()


def apportion(rows: int, shares: Sequence[float], owed: Sequence[float] | None = None) -> list[int]:
    """Whole numbers that sum to `rows`, by largest remainder, each at least 1.

    Args:
        rows: at least as many as there are shares.
        shares: they sum to 1.
        owed: rows that earlier classes rounded away from each share, added to the remainders; without
            it many small classes would all round the same way.
    """
    quotas = [round(rows * share, 9) for share in shares]
    counts = [int(quota) for quota in quotas]
    claims = [k for k in range(len(shares)) if quotas[k] > counts[k]]
    claims.sort(key=lambda k: counts[k] - quotas[k] - (owed[k] if owed else 0.0))
    for k in claims[: rows - sum(counts)]:
        counts[k] += 1
    while 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return counts
