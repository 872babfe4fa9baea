"""Images from elsewhere: what no photograph or scan looks like, to see whether an ensemble notices."""

from __future__ import annotations

import numpy as np

from orchestrator.data.dataset import Array


def images_from_elsewhere(images: Array, seed: int) -> dict[str, Array]:
    """Made-up images of the same number and shape, by name.

    `uniform_noise`: every value drawn anew from 0 to 255. `shuffled_pixels`: each image's own pixels in a
    random order, so that its colours stay and its shapes go.

    Args:
        images: `uint8` [N, C, H, W].
        seed: Of everything drawn.
    """
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, size=images.shape, dtype=np.uint8)
    pixels = images.reshape(*images.shape[:2], -1)
    order = random.random((len(images), 1, pixels.shape[2])).argsort(axis=2)
    return {
        "uniform_noise": noise,
        "shuffled_pixels": np.take_along_axis(pixels, order, axis=2).reshape(images.shape),
    }
