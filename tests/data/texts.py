"""Text Parquet of many files whose every row can be told by its first word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.config.data import ParquetData
from orchestrator.data.dataset import Array

FILES, FILE_ROWS, GROUP_ROWS = 4, 50, 20
"""Row groups of 20, 20 and 10 rows."""
ROWS = FILES * FILE_ROWS
OTHERS = ("validation", "calibration", "contract", "test")
WORDS = ("river", "engine", "violin")


def table(first: int, rows: int) -> pa.Table:
    """Row n says `w<n>` and the word of its class, n modulo 3."""
    numbers = range(first, first + rows)
    return pa.table(
        {"text": [f"w{n} {WORDS[n % 3]}" for n in numbers], "label": [f"c{n % 3}" for n in numbers]}
    )


def write(folder: Path) -> Path:
    """All parts; the train part in files."""
    (folder / "train").mkdir(parents=True)
    for number in range(FILES):
        rows = table(number * FILE_ROWS, FILE_ROWS)
        pq.write_table(rows, folder / "train" / f"part-{number}.parquet", row_group_size=GROUP_ROWS)
    for number, name in enumerate(OTHERS):
        pq.write_table(table(3 * number, 30), folder / f"{name}.parquet")
    return folder


def settings(folder: Path, **changed: Any) -> ParquetData:
    """Every word of the train part is known: the sample holds it as a whole unless changed."""
    view = {"kind": "words", "vocabulary": 1000, "least": 1, "length": 2}
    return ParquetData.model_validate(
        {
            "root": str(folder),
            "train": "train",
            "stream": {"shuffle": 30},
            "decode": {"kind": "text", "views": {"words": view}},
            **{name: f"{name}.parquet" for name in OTHERS},
            **changed,
        }
    )


def told(inputs: Array) -> list[int]:
    """What tells rows [N, 2] apart: the number of their first word."""
    return [int(row[0]) for row in inputs]
