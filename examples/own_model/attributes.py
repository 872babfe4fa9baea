"""Rows with several labels each: real images of handwritten digits, and what is true of the digit."""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
import pyarrow.parquet as pq

ATTRIBUTES = {"even": "02468", "prime": "2357", "loop": "0689", "above four": "56789"}
"""Each label, and the digits that have it: none of them is 1, so some rows have no label at all."""


def digits() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """`uint8` images [1797, 1, 8, 8], 0 or 1 for each label [1797, 4], and the labels' names."""
    with as_file(files("orchestrator.data.embedded") / "digits.parquet") as path:
        table = pq.read_table(path)
    images = table["image"].combine_chunks().to_numpy_ndarray()
    has = np.array([[str(digit) in having for having in ATTRIBUTES.values()] for digit in range(10)])
    return images, has[table["label"].to_numpy()].astype(np.int64), list(ATTRIBUTES)
