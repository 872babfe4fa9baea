"""Encoded images to a model's rows, by the decoder that read the training data."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from deployments.protocol.datatypes import Array
from deployments.protocol.errors import ProtocolError, TooLargeError
from deployments.protocol.model import Tensor
from orchestrator.config.data import Image
from orchestrator.data.images import DAMAGED, FORMATS, Decoder
from orchestrator.errors import DataError

MAX_PIXELS = 32 * 2**20
"""Most pixels of one image file: a small file may hold a huge image."""
MAX_REQUEST_PIXELS = 8 * MAX_PIXELS
"""Most pixels of all image files of a request together, since decoding takes time for each."""
MAX_DECODED_BYTES = 256 * 2**20
"""Most bytes that all images of a request may have once they are decoded."""
MOST_SCANS = 100
"""Of a JPEG file; usual ones have 1 to 10, and every scan goes over all pixels."""
_SCAN, _EXIF = b"\xff\xda", b"Exif\0\0"
_MODES = {1: "L", 3: "RGB"}


def takes_images(expected: Tensor) -> bool:
    """Whether an image file can be a row of this input."""
    shape = expected.shape[1:]
    return expected.datatype == "UINT8" and len(shape) == 3 and shape[0] in _MODES


def is_image(data: bytes) -> bool:
    """Whether the bytes begin like a PNG or JPEG file."""
    return data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"))


def check_count(count: int, expected: Tensor) -> None:
    """So many images may be in one request.

    Raises:
        TooLargeError: they may not.
    """
    if count * expected.row_bytes > MAX_DECODED_BYTES:
        raise TooLargeError(
            f"a request may have at most {MAX_DECODED_BYTES // expected.row_bytes} images", count
        )


def rows_of(files: Sequence[bytes], expected: Tensor) -> Array:
    """Decode image files, resized to the model's height and width where they differ.

    Returns:
        uint8 [N, C, H, W].

    Raises:
        ProtocolError: the model takes no images, or a file is none or is damaged.
        TooLargeError: an image has too many pixels, or all together have, or there are too many images.
    """
    if not takes_images(expected):
        raise ProtocolError("the model's rows are not images of 1 or 3 channels", list(expected.shape[1:]))
    check_count(len(files), expected)
    channels, height, width = expected.shape[1:]
    decoder = Decoder(Image.model_validate({"mode": _MODES[channels], "size": (height, width)}))
    pixels = 0
    for index, data in enumerate(files):
        pixels += _pixels(data, index)
        if pixels > MAX_REQUEST_PIXELS:
            raise TooLargeError(f"all images of a request may have at most {MAX_REQUEST_PIXELS} pixels")
    rows = []
    for index, data in enumerate(files):
        try:
            rows.append(decoder.image(data, f"row {index}"))
        except DataError as error:
            raise ProtocolError(error.what, error.value) from error
    return np.stack(rows)


def _check_work(data: bytes, index: int) -> None:
    """Refuse files whose decoding takes far longer than their pixels tell."""
    if data[:2] in (b"P1", b"P2", b"P3"):
        raise ProtocolError(f"the image of row {index} is a text", data[:2].decode(), "send P4, P5 or P6")
    if data[:2] == b"\xff\xd8" and (data.count(_SCAN) > MOST_SCANS or data.count(_EXIF) > MOST_SCANS):
        raise TooLargeError(f"a JPEG file may have at most {MOST_SCANS} scans or segments of a kind", index)


def _pixels(data: bytes, index: int) -> int:
    """Of one image, if they are not too many; reads only the file's head."""
    _check_work(data, index)
    try:
        with Pillow.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except UnidentifiedImageError as error:
        raise ProtocolError(
            f"the bytes of row {index} are no image", None, f"supported are {', '.join(FORMATS)}"
        ) from error
    except Pillow.DecompressionBombError as error:
        raise TooLargeError(f"an image may have at most {MAX_PIXELS} pixels") from error
    except DAMAGED as error:
        raise ProtocolError(f"the image of row {index} cannot be read", type(error).__name__) from error
    if width * height > MAX_PIXELS:
        raise TooLargeError(f"an image may have at most {MAX_PIXELS} pixels", f"{width}x{height}")
    return width * height
