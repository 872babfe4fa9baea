"""Parquet files to answer, and what is in the answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tests.data.toy import png, write
from tests.deployments.toys import FEATURES, IMAGES


def image_file(path: Path, images: np.ndarray = IMAGES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.arange(len(images))
    return write(path, image=[png(image[0]) for image in images], label=numbers % 3, number=numbers)


def table_file(path: Path, rows: np.ndarray = FEATURES) -> Path:
    columns = {f"f{place}": rows[:, place] for place in range(rows.shape[1])}
    return write(path, number=np.arange(len(rows)), **columns)


def column(path: Path, name: str) -> np.ndarray:
    return np.asarray(pq.read_table(path)[name].to_pylist())
