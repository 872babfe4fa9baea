"""Encoded images to `uint8` [C, H, W]."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from orchestrator.config.data import Image
from orchestrator.data.dataset import Array
from orchestrator.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Formats that Pillow decodes by itself: what comes from outside must not start another program."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_GRAY = ("1", "L", "LA")
_DEEP = ("I", "I;16", "I;16B", "I;16L", "F")
DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    zlib.error,
    Pillow.DecompressionBombError,
)
"""What Pillow raises for damaged files; it differs by format."""


class Decoder:
    """Decodes the images of one run; the first one fixes the mode and size that settings leave open."""

    def __init__(self, settings: Image) -> None:
        self._mode = settings.mode
        self._mode_given = settings.mode is not None
        self._resize = settings.size
        self._size = settings.size

    def image(self, data: bytes, place: str) -> Array:
        """Decode one image file.

        Args:
            data: the encoded file.
            place: where it stands, for errors ("row 3 of ...").

        Returns:
            `uint8` [C, H, W].

        Raises:
            DataError: the image is damaged, or does not fit the first one.
        """
        try:
            with Pillow.open(io.BytesIO(data), formats=FORMATS) as image:
                image.load()
                return self._pixels(image, place)
        except UnidentifiedImageError as error:
            raise DataError(
                f"the bytes in {place} are no image", fix=f"supported are {', '.join(FORMATS)}"
            ) from error
        except DAMAGED as error:
            raise DataError(
                f"the image in {place} cannot be decoded",
                " ".join(str(error).split()) or type(error).__name__,
                "mend or remove it (rows are counted from 0)",
            ) from error

    def _pixels(self, image: Pillow.Image, place: str) -> Array:
        if image.mode in _DEEP:
            raise DataError(f"the image in {place} has more than 8 bits a channel", image.mode, "convert it")
        if self._mode is None:
            self._mode = "L" if image.mode in _GRAY else "RGB"
        elif self._mode == "L" and image.mode not in _GRAY and not self._mode_given:
            raise DataError(
                f"the image in {place} is in colour ({image.mode}), but the first one is gray",
                fix="set data.image.mode to L or RGB",
            )
        plain = image.convert(self._mode)
        if self._resize is not None:
            height, width = self._resize
            plain = plain.resize((width, height), Pillow.Resampling.BILINEAR)
        pixels = np.asarray(plain, dtype=np.uint8)
        size = pixels.shape[:2]
        if self._size is None:
            self._size = (size[0], size[1])
        elif size != self._size:
            raise DataError(
                f"the image in {place} is {size[0]}x{size[1]}, but the first one is "
                f"{self._size[0]}x{self._size[1]} (height x width)",
                fix="set data.image.size to resize all images",
            )
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
