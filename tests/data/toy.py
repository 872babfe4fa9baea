"""Small files of every layout."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from orchestrator.config.data import ParquetData

ROWS = 60


def pixels(rows: int = ROWS, shape: tuple[int, ...] = (6, 5, 3), seed: int = 0) -> np.ndarray:
    """Random `uint8` images [rows, H, W, C], or [rows, H, W]."""
    return np.random.default_rng(seed).integers(0, 256, (rows, *shape), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    """A PNG file of one [H, W, C] or [H, W] image."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def structs(images: Sequence[bytes | None]) -> pa.Array:
    """The common image column: struct of bytes and path."""
    return pa.array(
        [{"bytes": data, "path": f"{row}.png"} for row, data in enumerate(images)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )


def write(path: Path, **columns: Any) -> Path:
    """A Parquet file of these columns."""
    pq.write_table(pa.table(columns), path, row_group_size=25)
    return path


def labels(rows: int = ROWS, classes: int = 3) -> np.ndarray:
    """0, 1, 2, 0, 1, 2, ..."""
    numbers: np.ndarray = np.arange(rows) % classes
    return numbers


def image_file(path: Path, images: np.ndarray | None = None, **columns: Any) -> Path:
    """A Parquet file of PNG images and labels."""
    images = pixels() if images is None else images
    found = {"image": structs([png(image) for image in images]), "label": labels(len(images))}
    return write(path, **{**found, **columns})


def settings(path: Path, **more: Any) -> ParquetData:
    """Data settings for one file."""
    return ParquetData.model_validate({"root": str(path.parent), "train": path.name, **more})


# Functions that run files name.


def circles(rows: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Points inside or outside of a circle."""
    points = np.random.default_rng(seed).normal(size=(rows, 2)).astype(np.float32)
    return points, (np.square(points).sum(axis=1) > 1.2).astype(np.int64), ["inside", "outside"]


def broken() -> None:
    """A data set function that fails."""
    raise RuntimeError("no such sensor")


def halved(inputs: np.ndarray) -> np.ndarray:
    """Keeps every second row and column of pixels."""
    return inputs[:, :, ::2, ::2]


def logged(inputs: np.ndarray) -> np.ndarray:
    """Leaves the rows as they are and notes that it was called."""
    with open(os.environ["TOY_LOG"], "a") as file:
        file.write("called\n")
    time.sleep(float(os.environ.get("TOY_SLEEP", "0")))
    return inputs


def shorter(inputs: np.ndarray) -> np.ndarray:
    """Drops a row, which a transform may not."""
    return inputs[1:]


def imputed(inputs: np.ndarray) -> np.ndarray:
    """Missing values become 0."""
    return np.where(np.isnan(inputs), 0, inputs)
