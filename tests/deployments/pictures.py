"""Rows as files."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def encoded(row: np.ndarray, form: str) -> bytes:
    """A uint8 [C, H, W] row as an image file."""
    buffer = io.BytesIO()
    Image.fromarray(row[0] if len(row) == 1 else row.transpose(1, 2, 0)).save(buffer, form)
    return buffer.getvalue()


def png(row: np.ndarray) -> bytes:
    """A uint8 [C, H, W] row as a PNG file, which loses nothing."""
    return encoded(row, "PNG")
