"""Shifted rows: what a model sees when a camera is noisy or a column is missing.

Images follow Hendrycks and Dietterich 2019 (https://arxiv.org/abs/1903.12261), with the strengths of their
CIFAR-10-C: Gaussian noise, Gaussian blur, contrast, brightness and pixelate, in numpy alone. Brightness adds
to every channel, which is what theirs does to a grey image. Feature rows get noise, or lose values; text
loses tokens; sound gets white noise, or is quiet.

Every row is a pure function of (seed, its id, kind, severity): neither order nor company changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from orchestrator.config.encoding import Category, TableEncoding
from orchestrator.config.signature import Signature
from orchestrator.data.text import UNKNOWN
from orchestrator.errors import DataError

ImageShift = Literal["gaussian_noise", "gaussian_blur", "contrast", "brightness", "pixelate"]
ColumnShift = Literal["noise", "missing"]
TokenShift = Literal["unknown"]
SoundShift = Literal["hiss", "quiet"]
Shift = Literal[ImageShift, ColumnShift, TokenShift, SoundShift]
SEVERITIES = (1, 2, 3, 4, 5)

STRENGTHS: dict[Shift, tuple[float, float, float, float, float]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "noise": (0.1, 0.2, 0.3, 0.4, 0.5),
    "missing": (0.05, 0.1, 0.2, 0.3, 0.4),
    "unknown": (0.05, 0.1, 0.2, 0.3, 0.4),
    "hiss": (0.1, 0.2, 0.3, 0.5, 0.7),
    "quiet": (0.5, 0.25, 0.1, 0.05, 0.02),
}
"""Deviation, or sigma in pixels at 32, factor, offset, share of the resolution; for columns deviations of the
column, and share of values that are gone; for text share of tokens that are unknown; for sound white noise
over the sound's own root mean square, and factor. Images are on a scale of 0..1."""
_KINDS = {"uint8": ImageShift, "float32": ColumnShift, "int32": TokenShift, "int16": SoundShift}
_SIDE = 32
"""Pixels of the images that the strengths are for: a blur grows with the image."""

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


def shifts(signature: Signature) -> tuple[Shift, ...]:
    """The kinds that rows of this signature can have."""
    return cast(tuple[Shift, ...], get_args(_KINDS[signature.input_dtype]))


def corrupt(
    inputs: Array, ids: npt.NDArray[np.int64], signature: Signature, shift: Shift, severity: int, *, seed: int
) -> Array:
    """The rows shifted, of the same shape and type.

    Args:
        inputs: uint8 [N, C, H, W], float32 [N, F] or [N, C, ...], int32 [N, L] or int16 [N, T].
        ids: int64 [N], of the rows.
        signature: of the data; a lost value becomes its column's mean in the training part, or is unknown.
        shift: one of `shifts(signature)`.
        severity: 1 to 5.
        seed: of what is random.

    Raises:
        DataError: the kind does not fit the rows, or the severity is none of 1 to 5.
    """
    if shift not in shifts(signature):
        raise DataError("this shift does not fit the rows", shift, f"use {', '.join(shifts(signature))}")
    if severity not in SEVERITIES:
        raise DataError("no such severity", severity, "use 1 to 5")
    strength = STRENGTHS[shift][severity - 1]
    randoms = _randoms(ids, shift, severity, seed)
    if not _images(signature):
        return _OTHERS[signature.input_dtype](inputs, signature, shift, strength, randoms)
    scaled = inputs.astype(np.float64) / 255
    if shift == "gaussian_noise":
        noise = np.stack([random.standard_normal(inputs.shape[1:]) for random in randoms])
        shifted = scaled + strength * noise
    else:
        shifted = _IMAGES[shift](scaled, strength)
    return np.asarray(np.rint(np.clip(shifted, 0, 1) * 255).astype(np.uint8))


def _images(signature: Signature) -> bool:
    return signature.input_dtype == "uint8"


def _randoms(
    ids: npt.NDArray[np.int64], shift: Shift, severity: int, seed: int
) -> Iterator[np.random.Generator]:
    kind = list(STRENGTHS).index(shift)
    # A source's ids are not negative; the mask keeps any others from being refused.
    return (np.random.default_rng([seed, kind, severity, int(row) & 2**63 - 1]) for row in ids)


def _columns(
    inputs: Array, signature: Signature, shift: Shift, strength: float, randoms: Iterator[np.random.Generator]
) -> Array:
    # One value for all, a feature or a channel, as in the model's first layer.
    shape = (-1, *(1 for _ in inputs.shape[2:]))
    mean, std = (np.asarray(values).reshape(shape) for values in (signature.mean, signature.std))
    if shift == "noise":
        noise = np.stack([random.standard_normal(inputs.shape[1:]) for random in randoms])
        if isinstance(signature.encoding, TableEncoding):
            # A code beside a category's own is another category, not a noisy one.
            std = std * [not isinstance(column, Category) for column in signature.encoding.columns]
        return np.asarray((inputs + strength * std * noise).astype(inputs.dtype))
    gone = np.stack([random.random(inputs.shape[1:]) < strength for random in randoms])
    return np.asarray(np.where(gone, mean, inputs).astype(inputs.dtype))


def _tokens(
    inputs: Array, _: Signature, __: Shift, strength: float, randoms: Iterator[np.random.Generator]
) -> Array:
    """Where a row is not filled up, tokens become unknown ones."""
    gone = np.stack([random.random(inputs.shape[1:]) < strength for random in randoms])
    return np.where(gone & (inputs > UNKNOWN), UNKNOWN, inputs).astype(inputs.dtype)


def _sound(
    inputs: Array, _: Signature, shift: Shift, strength: float, randoms: Iterator[np.random.Generator]
) -> Array:
    samples = inputs.astype(np.float64)
    if shift == "quiet":
        return np.asarray(np.rint(samples * strength).astype(inputs.dtype))
    loudness = np.sqrt(np.mean(samples**2, axis=1, keepdims=True))
    noise = np.stack([random.standard_normal(inputs.shape[1:]) for random in randoms])
    return np.asarray(
        np.rint(np.clip(samples + strength * loudness * noise, -32768, 32767)).astype(inputs.dtype)
    )


_OTHERS = {"float32": _columns, "int32": _tokens, "int16": _sound}


def _contrast(images: Floats, factor: float) -> Floats:
    means = images.mean(axis=(2, 3), keepdims=True)
    return np.asarray((images - means) * factor + means)


def _brightness(images: Floats, offset: float) -> Floats:
    return images + offset


def _blur(images: Floats, sigma: float) -> Floats:
    """Separable Gaussian, a matrix along each axis; beyond the edge its last pixel goes on."""

    def kernel(length: int) -> Floats:
        scale = sigma * max(1.0, min(images.shape[2:]) / _SIDE)
        reach = int(np.ceil(4 * scale))
        offsets = np.arange(-reach, reach + 1)
        weights = np.exp(-0.5 * (offsets / scale) ** 2)
        places = np.clip(np.arange(length)[:, None] + offsets, 0, length - 1)
        matrix = np.zeros((length, length))
        np.add.at(matrix, (np.arange(length)[:, None], places), weights / weights.sum())
        return matrix

    return _along(images, kernel(images.shape[2]), kernel(images.shape[3]))


def _pixelate(images: Floats, share: float) -> Floats:
    """Down to a share of the resolution and up again, both with a box filter."""

    def there_and_back(length: int) -> Floats:
        fewer = max(1, int(length * share))
        return _box(length, fewer) @ _box(fewer, length)

    return _along(images, there_and_back(images.shape[2]), there_and_back(images.shape[3]))


def _box(rows: int, columns: int) -> Floats:
    """Matrix [rows, columns]: each new pixel is the mean of the old ones below it, by their overlap."""
    new, old = np.arange(rows)[:, None] / rows, np.arange(columns) / columns
    overlap = np.minimum(new + 1 / rows, old + 1 / columns) - np.maximum(new, old)
    overlap = np.maximum(overlap, 0.0)
    return np.asarray(overlap / overlap.sum(axis=1, keepdims=True))


def _along(images: Floats, down: Floats, across: Floats) -> Floats:
    return np.asarray(down @ images @ across.T)


_IMAGES: dict[Shift, Callable[[Floats, float], Floats]] = {
    "gaussian_blur": _blur,
    "contrast": _contrast,
    "brightness": _brightness,
    "pixelate": _pixelate,
}
