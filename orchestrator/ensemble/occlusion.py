"""Which part of an image a decision rests on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.errors import DataError

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Occlusion:
    """What hiding each part of an image does to one class."""

    height: int
    """Of the image, in pixels."""
    width: int
    patch: int
    """Side of the hidden square, in pixels."""
    stride: int
    """Pixels from one place of the square to the next."""
    probability: float
    """Of the class, with nothing hidden."""
    drop: npt.NDArray[np.float64]
    """[H', W']: how much it falls with the square at (row, column) * stride; negative where it rises."""

    def plain(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "height": self.height,
            "width": self.width,
            "patch": self.patch,
            "stride": self.stride,
            "probability": self.probability,
            "drop": self.drop.tolist(),
        }


def occlusion_map(
    predict: Callable[[Image], npt.NDArray[Any]], image: Image, label: int, *, patch: int, stride: int
) -> Occlusion:
    """Slide a square of the image's mean colour over it, and see how much each place matters.

    Zeiler and Fergus 2014 (https://arxiv.org/abs/1311.2901), section 4.2.

    Args:
        predict: From raw images [n, C, H, W] to probabilities [n, K]: of a model, or of a whole ensemble.
        image: One image [C, H, W].
        label: The class that is looked at.
        patch: Side of the square, in pixels.
        stride: Pixels from one place to the next.

    Raises:
        DataError: the square does not fit into the image.
    """
    height, width = image.shape[1:]
    if not 1 <= patch <= min(height, width) or stride < 1:
        raise DataError(
            "the hidden square does not fit into the image",
            f"patch {patch}, stride {stride}",
            f"take a patch of 1 to {min(height, width)} pixels and a stride of at least 1",
        )
    rows, columns = (range(0, side - patch + 1, stride) for side in (height, width))
    colour = image.mean(axis=(1, 2)).round().astype(image.dtype)
    hidden = np.repeat(image[None], 1 + len(rows) * len(columns), axis=0)
    for place, (row, column) in enumerate(((row, column) for row in rows for column in columns), start=1):
        hidden[place, :, row : row + patch, column : column + patch] = colour[:, None, None]
    found = predict(hidden)[:, label].astype(np.float64)
    drop = (found[0] - found[1:]).reshape(len(rows), len(columns))
    return Occlusion(height, width, patch, stride, float(found[0]), drop)
