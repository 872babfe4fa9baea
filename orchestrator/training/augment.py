"""Image augmentation as a pure function of (seed, sample id, view); patches also of the rows that there are.

Nothing is drawn from a random stream, so a row looks the same in view v in every epoch, worker, restart
and arm of a comparison, and a teacher's outputs on the V views can be computed once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.config.signature import Signature
from orchestrator.config.training import Augment
from orchestrator.errors import ConfigError


def active(settings: Augment) -> bool:
    """Whether any view differs from the plain rows."""
    return _changes_single_rows(settings) or settings.cutmix is not None


def _changes_single_rows(settings: Augment) -> bool:
    return settings.flip or settings.crop > 0 or settings.cutout > 0


def views(settings: Augment) -> int:
    """Number of distinct views: 1 when nothing is augmented."""
    return settings.views if active(settings) else 1


def check_augment(settings: Augment, signature: Signature) -> None:
    """Refuse an augmentation that the rows cannot take.

    Raises:
        ConfigError: rows are not images, or the crop is as large as the image.
    """
    if not active(settings):
        return
    if len(signature.input_shape) != 3:
        raise ConfigError(
            "flip, crop, cutout and cutmix need images",
            f"rows of shape {signature.input_shape}",
            "remove them",
        )
    smallest = min(signature.input_shape[1:])
    for name, pixels in (("crop", settings.crop), ("cutout", settings.cutout)):
        if pixels >= smallest:
            raise ConfigError(
                f"{name} must be smaller than the image ({smallest} pixels)", pixels, "choose fewer pixels"
            )


def augment(images: Tensor, ids: NDArray[np.int64], view: int, settings: Augment, seed: int) -> Tensor:
    """Flip, crop and cut out a batch.

    Flips alternate: a row that is mirrored in one view is not in the next (Jordan 2024,
    https://arxiv.org/abs/2404.00498, section 3.6). Cutout is that of DeVries and Taylor 2017
    (https://arxiv.org/abs/1708.04552): the square's center lies anywhere, so part of it may fall outside.

    Args:
        images: [B, C, H, W] of any type.
        ids: stable sample ids [B]: what decides each row's flip and offset, besides seed and view.
        view: number of the view.
        settings: what to do; `crop` pixels of reflected border are added before the cut, `cutout` comes last.
        seed: of the run.

    Returns:
        [B, C, H, W] of the same type, contiguous; `images` itself when there is nothing to do.
    """
    if not _changes_single_rows(settings):
        return images
    batch, channels, height, width = images.shape
    bits = hash_rows(seed, ids, view)
    span = 2 * settings.crop + 1
    rows = _source(_below(bits >> np.uint64(8), span), height, settings.crop)
    columns = _source(_below(bits >> np.uint64(40), span), width, settings.crop)
    if settings.flip:
        own = hash_rows(seed, ids, 0) & np.uint64(1)
        mirrored = torch.from_numpy((own ^ np.uint64(view & 1)).astype(bool))
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    pixels = (rows[:, :, None] * width + columns[:, None, :]).view(batch, 1, height * width)
    flat = images.reshape(batch, channels, height * width)
    gathered = flat.gather(2, pixels.expand(batch, channels, height * width))
    cropped = gathered.view(batch, channels, height, width)
    return _cut_out(cropped, _mix(bits), settings.cutout) if settings.cutout else cropped


def partners(
    ids: NDArray[np.int64], view: int, share: float, seed: int, rows: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which rows of a batch get a patch in a view, and of whom.

    Args:
        ids: stable sample ids [B].
        view: number of the view.
        share: of the rows that get one, on average.
        seed: of the run.
        rows: that there are to choose from.

    Returns:
        Places in the batch [M], and for each the position of the other row among the `rows` [M].
    """
    bits = _patch_bits(ids, view, seed)
    places = np.flatnonzero(_below(bits, _LARGEST).numpy() < share * _LARGEST)
    return places, (_mix(bits[places]) % np.uint64(rows)).astype(np.int64)


def cutmix(images: Tensor, others: Tensor, ids: NDArray[np.int64], view: int, seed: int) -> Tensor:
    """Images with a patch of others, at the place where those have it.

    As in Yun et al. 2019 (https://arxiv.org/abs/1905.04899): the patch's area is uniform between nothing and
    all, its center lies anywhere, so part of it may fall outside.

    Args:
        images: [M, C, H, W], augmented.
        others: [M, C, H, W], what patches are cut from, augmented.
        ids: stable sample ids [M] of `images`.
        view: number of the view.
        seed: of the run.
    """
    bits = _mix(_patch_bits(ids, view, seed) + np.uint64(1))
    side = (_below(_mix(bits), _LARGEST).double() / _LARGEST).sqrt()
    height, width = images.shape[2:]
    patch = _boxes(bits, (height, width), (side * height).long(), (side * width).long())
    return torch.where(patch.to(images.device), others, images)


_LARGEST = 1 << 24
"""One more than what `_below` takes of a row's bits."""


def _patch_bits(ids: NDArray[np.int64], view: int, seed: int) -> NDArray[np.uint64]:
    """Others than those that flip, crop and cut out."""
    return _mix(hash_rows(seed, ids, view) ^ np.uint64(0xC07))


def hash_rows(seed: int, ids: NDArray[np.int64], view: int) -> NDArray[np.uint64]:
    """64 well-mixed bits a row from (seed, id, view), by SplitMix64 (Steele et al. 2014)."""
    start = _mix(np.array([seed], dtype=np.uint64))
    return _mix(_mix(start ^ ids.astype(np.int64).view(np.uint64)) ^ np.uint64(view))


def _cut_out(images: Tensor, bits: NDArray[np.uint64], size: int) -> Tensor:
    """Images [B, C, H, W] with a square of `size` pixels a side in each image's mean color."""
    height, width = images.shape[2:]
    hole = _boxes(bits, (height, width), size, size).to(images.device)
    mean = images.float().mean((2, 3), keepdim=True)
    color = mean if images.is_floating_point() else mean.round()
    return torch.where(hole, color.to(images.dtype), images)


def _boxes(
    bits: NDArray[np.uint64], image: tuple[int, int], height: int | Tensor, width: int | Tensor
) -> Tensor:
    """Whether a pixel lies in its image's box [B, 1, H, W]: of one size or one a row, around any pixel."""
    inside = []
    for shift, length, size in ((8, image[0], height), (40, image[1], width)):
        corner = (_below(bits >> np.uint64(shift), length) - size // 2)[:, None]
        end = corner + (size[:, None] if isinstance(size, Tensor) else size)
        place = torch.arange(length)
        inside.append((place >= corner) & (place < end))
    return inside[0][:, None, :, None] & inside[1][:, None, None, :]


def _below(bits: NDArray[np.uint64], span: int) -> Tensor:
    """The low 24 bits as an int64 from 0 to `span` - 1."""
    return torch.from_numpy(
        (((bits & np.uint64(0xFFFFFF)) * np.uint64(span)) >> np.uint64(24)).astype(np.int64)
    )


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed: NDArray[Any] = value + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _source(offset: Tensor, size: int, pad: int) -> Tensor:
    """Source positions [B, size] of a cut at `offset` in a line that was padded by reflection."""
    positions = offset[:, None] + torch.arange(size) - pad
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)
