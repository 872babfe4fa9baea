"""What the rest of the project sees of data: five read-only parts and the facts about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.data import PartName
from orchestrator.config.signature import Signature
from orchestrator.data.stream import Stream

Array = NDArray[Any]


def as_float32(values: Array) -> Array:
    """`float32` of any numbers; what it cannot hold becomes infinite, and is refused as such later on."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def rows_of_class(targets: Array, classes: int) -> Array:
    """`int64` [K]: rows with each class, or with each label; labels [N, K] or classes [N]."""
    if targets.ndim == 2:
        return np.asarray((targets == 1).sum(axis=0, dtype=np.int64))
    return np.bincount(targets[targets >= 0], minlength=classes)


@dataclass(frozen=True)
class Part:
    """One part, memory-mapped and read-only. Its rows stand in a seeded random order, so that the first
    n rows are a fair sample of the part."""

    inputs: Array
    """`uint8` [N, C, H, W] images or `float32` [N, F] feature rows."""
    targets: Array
    """`int64` [N] classes, `int8` [N, K] labels, 0 or 1, or `float32` [N, T] regression targets."""
    ids: Array
    """`int64` [N]: row numbers in the source, those of a second file after those of the first."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Dataset:
    """All five parts of one source under one seed."""

    parts: dict[PartName, Part]
    signature: Signature
    digest: str
    """Hex sha256 over the signature and, for each part, its decoded rows, targets and ids."""
    facts: dict[str, Any]
    """Plain values for the summary: `source`, and per part `rows`, `row_digests` and, for
    classes or labels, `class_counts` in their order."""
    folder: Path
    """Cache folder; `orchestrator.data.load.open_cached` opens it again without decoding."""
    stream: Stream | None = None
    """Where the train part is a stream: all its rows, of which `parts["train"]` is a sample."""

    def part(self, name: PartName) -> Part:
        """One part by name."""
        return self.parts[name]
