"""Augmentation: pure, exact against a plain version, and really varied."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from orchestrator.config.training import Augment
from orchestrator.errors import ConfigError
from orchestrator.training.augment import augment, check_augment, cutmix, hash_rows, partners, views
from tests.training.toy import FEATURES, IMAGES

IDS = np.arange(64, dtype=np.int64) * 7919
IMAGE_ROWS = torch.randint(0, 256, (64, 3, 8, 10), dtype=torch.uint8, generator=torch.manual_seed(0))
BOTH = Augment(flip=True, crop=2, views=4)
HOLE = Augment(cutout=4, views=4)


def plainly(images: NDArray[np.uint8], ids: NDArray[np.int64], view: int, seed: int) -> NDArray[np.uint8]:
    """Row by row, as the settings describe it."""
    cut = []
    own = hash_rows(seed, ids, 0)
    for image, bits, first in zip(images, hash_rows(seed, ids, view), own, strict=True):
        top = (int(bits) >> 8 & 0xFFFFFF) * 5 >> 24
        left = (int(bits) >> 40) * 5 >> 24
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="reflect")[:, top : top + 8, left : left + 10]
        cut.append(padded[:, :, ::-1] if (int(first) + view) % 2 else padded)
    return np.stack(cut)


def test_equals_the_plain_version() -> None:
    got = augment(IMAGE_ROWS, IDS, 1, BOTH, 3).numpy()
    np.testing.assert_array_equal(got, plainly(IMAGE_ROWS.numpy(), IDS, 1, 3))


def test_a_row_does_not_depend_on_its_batch() -> None:
    whole = augment(IMAGE_ROWS, IDS, 2, BOTH, 3)
    picked = [40, 3, 17]
    alone = augment(IMAGE_ROWS[picked], IDS[picked], 2, BOTH, 3)
    assert torch.equal(whole[picked], alone)
    assert torch.equal(whole, augment(IMAGE_ROWS, IDS, 2, BOTH, 3))


def test_views_seeds_and_ids_differ() -> None:
    base = augment(IMAGE_ROWS, IDS, 0, BOTH, 3)
    assert not torch.equal(base, augment(IMAGE_ROWS, IDS, 1, BOTH, 3))
    assert not torch.equal(base, augment(IMAGE_ROWS, IDS, 0, BOTH, 4))
    assert not torch.equal(base, augment(IMAGE_ROWS, IDS + 1, 0, BOTH, 3))


def test_flips_alternate() -> None:
    flipped = [augment(IMAGE_ROWS, IDS, view, Augment(flip=True), 3) for view in range(3)]
    assert torch.equal(flipped[0], flipped[2])
    assert torch.equal(flipped[0].flip(3), flipped[1])
    mirrored = (flipped[0] != IMAGE_ROWS).flatten(1).any(1)
    assert 16 < mirrored.sum() < 48


def test_cutout_paints_one_square_in_the_mean_color() -> None:
    holed = augment(IMAGE_ROWS, IDS, 1, HOLE, 3)
    heights = set()
    for image, before in zip(holed, IMAGE_ROWS, strict=True):
        inside = (image != before).any(0)
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        square = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].float()
        mean = before.float().mean((1, 2), keepdim=True).round()
        assert torch.equal(square, mean.expand_as(square))
        assert max(square.shape[1:]) <= 4
        heights.add(len(rows))
    assert heights == {2, 3, 4}  # the center lies anywhere, also at the border
    assert not torch.equal(holed, augment(IMAGE_ROWS, IDS, 2, HOLE, 3))


def test_cutout_keeps_real_values() -> None:
    rows = IMAGE_ROWS.float() / 255
    holed = augment(rows, IDS, 1, HOLE, 3)
    changed = (holed != rows).flatten(1).any(1)
    assert changed.all()
    assert holed.dtype == rows.dtype


def test_a_patch_is_a_rectangle_of_the_other_row() -> None:
    others = 255 - IMAGE_ROWS
    mixed = cutmix(IMAGE_ROWS, others, IDS, 1, 3)
    areas = []
    for image, before, other in zip(mixed, IMAGE_ROWS, others, strict=True):
        inside = (image != before).any(0)
        assert torch.equal(image, torch.where(inside, other, before))
        rows, columns = inside.any(1), inside.any(0)
        assert torch.equal(inside, rows[:, None] & columns)
        areas.append(inside.float().mean().item())
    assert min(areas) < 0.1
    assert max(areas) > 0.5
    assert not torch.equal(mixed, cutmix(IMAGE_ROWS, others, IDS, 2, 3))
    assert torch.equal(mixed[[9, 4]], cutmix(IMAGE_ROWS[[9, 4]], others[[9, 4]], IDS[[9, 4]], 1, 3))


def test_the_share_of_rows_gets_patches_of_any_row() -> None:
    ids = np.arange(20_000, dtype=np.int64)
    places, others = partners(ids, 2, 0.3, 5, 10)
    assert abs(len(places) / len(ids) - 0.3) < 0.02
    assert np.bincount(others, minlength=10).min() > len(places) / 10 * 0.8
    np.testing.assert_array_equal(places[places < 100], partners(ids[:100], 2, 0.3, 5, 10)[0])
    assert len(partners(ids, 2, 1.0, 5, 10)[0]) == len(ids)
    assert set(places) != set(partners(ids, 3, 0.3, 5, 10)[0])


def test_flips_are_half_and_offsets_uniform() -> None:
    bits = hash_rows(5, np.arange(20_000, dtype=np.int64), 0)
    assert abs(np.mean(bits & np.uint64(1)) - 0.5) < 0.02
    for shift in (8, 40):
        offsets = ((bits >> np.uint64(shift)) & np.uint64(0xFFFFFF)) * np.uint64(9) >> np.uint64(24)
        counts = np.bincount(offsets.astype(int), minlength=9)
        assert len(counts) == 9
        assert counts.min() > 20_000 / 9 * 0.9


def test_nothing_to_do_gives_the_images_back() -> None:
    for settings in (Augment(views=4), Augment(cutmix=0.5)):  # patches come later
        assert augment(IMAGE_ROWS, IDS, 1, settings, 0) is IMAGE_ROWS
    assert views(Augment(views=4)) == 1
    assert views(BOTH) == 4
    assert views(Augment(cutmix=0.5, views=3)) == 3


def test_what_cannot_be_augmented_is_refused() -> None:
    with pytest.raises(ConfigError, match="need images"):
        check_augment(Augment(flip=True), FEATURES)
    with pytest.raises(ConfigError, match="smaller than the image"):
        check_augment(Augment(crop=8), IMAGES)
    with pytest.raises(ConfigError, match="cutout must be smaller"):
        check_augment(Augment(cutout=8), IMAGES)
    check_augment(Augment(), FEATURES)
    check_augment(Augment(crop=7), IMAGES)
