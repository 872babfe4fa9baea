"""Seeded, stratified cuts of one source into parts."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np

from orchestrator.config.data import PARTS, PartName, Shares
from orchestrator.data.dataset import Array, rows_of_class
from orchestrator.errors import DataError

LEAST_ROWS = 20
HELD: tuple[PartName, ...] = ("calibration", "contract")
"""Parts that may come from the validation file."""
_FIRST: tuple[PartName, ...] = ("train", "test", "validation", "contract", "calibration")
"""Which parts the rows of a class go to that has too few for all."""


def cuts(
    shares: Shares, named: Collection[PartName], *, source: Literal["train", "validation"] = "train"
) -> dict[PartName, dict[PartName, float]]:
    """By source that is cut, what share of it each part gets; the other sources are a part each.

    Args:
        shares: of the parts.
        named: parts that have a file of their own.
        source: that calibration and contract are cut from; `validation` is to have a file then.
    """
    if source == "train":
        return {"train": free_shares(shares, named)}
    held: list[PartName] = ["validation", *(name for name in HELD if name not in named)]
    total = sum(getattr(shares, name) for name in held)
    found: dict[PartName, dict[PartName, float]] = {"train": free_shares(shares, {*named, *HELD})}
    if len(held) > 1:
        found["validation"] = {name: getattr(shares, name) / total for name in held}
    return found


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
    lacking: bool = False,
) -> dict[PartName, Array]:
    """Row numbers of each part, in a random order that depends on `seed` and `rows` alone.

    With `labels` every class is cut by itself (largest remainder), and every part gets at least one row
    of every class. With `spread`, a class of too few rows for that gives one row each to train, test,
    validation, contract and calibration, as far as they go; with `lacking`, too, one of no row goes nowhere.
    Rows of several labels: `label_parts`.

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
        counts = rows_of_class(labels, len(classes))
        found = class_parts(counts, shares, origin, classes, spread, lacking)
        ordered = labels[order]
        if labels.ndim == 2:
            of_label = [np.bincount(mine, minlength=len(names)).tolist() for mine in found]
            part_of[order] = label_parts(ordered, apportion(rows, wanted), of_label)
        else:
            for label, mine in enumerate(found):
                part_of[order[ordered == label]] = mine
    ordered_parts = part_of[order]
    return {name: order[ordered_parts == number] for number, name in enumerate(names)}


def class_parts(
    rows: Array,
    shares: Mapping[PartName, float],
    origin: str,
    classes: Sequence[str],
    spread: bool,
    lacking: bool = False,
) -> list[Array]:
    """Of each class, or label, the parts of its rows in their order, by how many there are: `rows` [K].

    Raises:
        DataError: see `cut`.
    """
    names, wanted = list(shares), list(shares.values())
    owed = [0.0] * len(names)
    found: list[Array] = []
    for name, count in zip(classes, rows.tolist(), strict=True):
        if spread and (0 < count < len(names) or (lacking and not count)):
            mine = [names.index(part) for part in _FIRST if part in names][:count]
            found.append(np.asarray(mine, dtype=np.int64))
            continue
        if count < len(names):
            raise DataError(
                f"class '{name}' of {origin} is too small to split into {len(names)} parts "
                f"({', '.join(names)})",
                f"{count} rows",
                f"give every class at least {len(names)} rows, name files for some of the parts, or set "
                "data.small_classes: spread",
            )
        counts = apportion(count, wanted, owed)
        owed = [owed[k] + count * wanted[k] - counts[k] for k in range(len(names))]
        found.append(np.repeat(np.arange(len(names)), counts))
    return found


def label_parts(labels: Array, sizes: Sequence[int], counts: Sequence[Sequence[int]]) -> Array:
    """`int64` [N]: a part for each row of several labels, so that every label keeps its share.

    Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011, https://doi.org/10.1007/978-3-642-23808-6_10):
    of the label with the fewest rows left, each row goes to the part that lacks most rows with that label,
    and of equal ones to the part that lacks most rows. Ties beyond that fall to the first part.

    Args:
        labels: 0 or 1 [N, K], in an order by chance.
        sizes: Rows that each part should get.
        counts: [K, parts] rows with each label that each part should get.
    """
    part_of = np.full(len(labels), -1)
    lacks, wants = list(sizes), [list(found) for found in counts]
    there = labels == 1
    left = there.sum(axis=0)
    places = range(len(lacks))

    def give(row: int, part: int, own: Sequence[int]) -> None:
        part_of[row] = part
        lacks[part] -= 1
        for label in own:
            wants[label][part] -= 1

    while left.any():
        label = int(np.where(left > 0, left, len(labels) + 1).argmin())
        rows = np.flatnonzero(there[:, label] & (part_of < 0))
        for row in rows.tolist():
            mine = wants[label]
            give(row, max(places, key=lambda k: (mine[k], lacks[k])), np.flatnonzero(there[row]).tolist())
        left -= there[rows].sum(axis=0)
    for row in np.flatnonzero(part_of < 0).tolist():
        give(row, max(places, key=lacks.__getitem__), ())
    return part_of


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
