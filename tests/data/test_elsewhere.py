"""Images from elsewhere: made of nothing but a seed, or of an image's own pixels."""

from __future__ import annotations

import numpy as np

from orchestrator.data.elsewhere import images_from_elsewhere


def test_noise_is_uniform_and_shuffling_keeps_each_image_own_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, size=(20, 3, 12, 10), dtype=np.uint8)
    before = images.copy()
    found = images_from_elsewhere(images, seed=5)
    assert found.keys() == {"uniform_noise", "shuffled_pixels"}
    for made in found.values():
        assert made.shape == images.shape
        assert made.dtype == np.uint8
    counts = np.bincount(found["uniform_noise"].ravel() // 16, minlength=16)
    assert abs(counts / counts.mean() - 1).max() < 0.25
    shuffled = found["shuffled_pixels"]
    for own, made in zip(images, shuffled, strict=True):
        # Whole pixels move: their colours stay together.
        assert sorted(map(tuple, own.reshape(3, -1).T)) == sorted(map(tuple, made.reshape(3, -1).T))
    assert (shuffled != images).mean() > 0.9
    assert (images == before).all()


def test_the_seed_decides() -> None:
    images = np.zeros((4, 1, 8, 8), dtype=np.uint8)
    images[:, :, :4] = 200
    first, same, other = (images_from_elsewhere(images, seed) for seed in (1, 1, 2))
    for name in first:
        assert (first[name] == same[name]).all()
        assert (first[name] != other[name]).any()
