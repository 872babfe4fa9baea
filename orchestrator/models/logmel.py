"""Log-mel spectrograms as a part of the network: products with fixed matrices, so every engine can run
them."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.config.encoding import AudioEncoding
from orchestrator.config.model import LogMelKwargs
from orchestrator.config.signature import Signature
from orchestrator.errors import ModelError

LEAST_POWER = 1e-6
"""What is quieter counts as silence: 60 dB below a full-scale (or, for scaled sound, an average) signal."""
_FULL_SCALE = 2.0**15


class LogMel(nn.Module):
    """Windows, power spectrum, mel bands (Davis and Mermelstein 1980, https://doi.org/10.1109/TASSP.1980.1163420),
    logarithm, and each band normalized by batch statistics.

    Computes in float32 whatever the type of the network behind it. A window is even and odd about its
    middle, so the transform of N real samples is two products with matrices of N / 2 rows.
    """

    keeps_float32 = True
    even: Tensor
    """Cosines [N / 2, frequencies]"""
    odd: Tensor
    """Sines [N / 2, frequencies]"""
    bands: Tensor
    """[frequencies, mels]"""

    def __init__(self, kwargs: LogMelKwargs, rate: int, length: int) -> None:
        """For sound of `length` samples at `rate` Hz.

        Raises:
            ModelError: a window is longer than the sound.
        """
        super().__init__()
        self.window = max(round(kwargs.window_ms * rate / 2000), 1) * 2
        self.hop = max(round(kwargs.hop_ms * rate / 1000), 1)
        if self.window > length:
            raise ModelError(
                f"a window of {kwargs.window_ms} ms is longer than the sound: {length} samples at {rate} Hz",
                self.window,
                "lower kwargs.window_ms",
            )
        self.frames = (length - self.window) // self.hop + 1
        for name, values in zip(("even", "odd"), transform(self.window), strict=True):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)
        bands = mel_bands(rate, self.window, kwargs.mels)
        self.register_buffer("bands", torch.tensor(bands, dtype=torch.float32), persistent=False)
        self.norm = nn.BatchNorm1d(kwargs.mels)
        self.shift = Shift(round(kwargs.shift_ms * rate / 1000))
        self.mask = Mask(kwargs.mask_bands, round(kwargs.mask_ms * rate / 1000 / self.hop))

    def forward(self, x: Tensor) -> Tensor:
        """int16 or scaled float32 [B, samples] -> float32 [B, mels, frames]."""
        framed = self.shift(loudness(x)).unfold(1, self.window, self.hop).reshape(-1, self.window)
        half = self.window // 2
        left, right = framed[:, :half], framed[:, half:].flip(1)
        power = ((left + right) @ self.even).square() + ((left - right) @ self.odd).square()
        mels = (power @ self.bands + LEAST_POWER).log()
        out: Tensor = self.norm(mels.reshape(-1, self.frames, self.bands.shape[1]).transpose(1, 2))
        masked: Tensor = self.mask(out)
        return masked


class Cast(nn.Module):
    """To the type of the network around it: bfloat16 where that was rounded."""

    like: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape and type -> the same shape."""
        return x.to(self.like.dtype)


class Shift(nn.Module):
    """In training each sound moves by up to so many samples; silence comes in."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        """[B, samples] -> the same shape."""
        if not self.training or not self.most:
            return x
        offsets = torch.randint(0, 2 * self.most + 1, (len(x), 1), device=x.device)
        places = torch.arange(x.shape[1], device=x.device) + offsets
        return functional.pad(x, (self.most, self.most)).gather(1, places)


class Mask(nn.Module):
    """In training a block of bands and one of frames become 0, their mean (SpecAugment, Park et al. 2019,
    https://arxiv.org/abs/1904.08779), each of a random width up to the most."""

    def __init__(self, bands: int, frames: int) -> None:
        super().__init__()
        self.most = (bands, frames)

    def forward(self, x: Tensor) -> Tensor:
        """[B, mels, frames] -> the same shape."""
        if not self.training:
            return x
        for axis, most in zip((1, 2), self.most, strict=True):
            if most:
                x = x * _outside(len(x), x.shape[axis], most, x.device).unsqueeze(3 - axis)
        return x


def _outside(rows: int, size: int, most: int, device: torch.device) -> Tensor:
    """bool [rows, size]: False in one random block a row, of up to `most` places."""
    width = torch.rand(rows, 1, device=device) * most
    start = torch.rand(rows, 1, device=device) * (size - width)
    places = torch.arange(size, device=device)
    return (places < start) | (places >= start + width.round())


def loudness(x: Tensor) -> Tensor:
    """int16 [B, samples] as float32 of -1 to 1; sound that is scaled already stays as it is."""
    return x.to(torch.float32) if x.is_floating_point() else x.to(torch.float32) / _FULL_SCALE


def transform(window: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosines and sines [window / 2, window / 2 + 1] about the middle, times a Hann window of unit energy."""
    half = window // 2
    place = np.arange(half) + 0.5 - half
    hann = np.cos(np.pi * place / window) ** 2
    hann /= math.sqrt(2 * np.square(hann).sum())
    angle = 2 * np.pi / window * np.outer(place, np.arange(half + 1))
    return hann[:, None] * np.cos(angle), hann[:, None] * np.sin(angle)


def mel_bands(rate: int, window: int, mels: int) -> NDArray[np.float64]:
    """Triangles [window / 2 + 1, mels], evenly spaced on the mel scale from 0 Hz to half the rate; each
    has sum 1."""
    frequency = np.linspace(0, rate / 2, window // 2 + 1)
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequency[:, None] - low) / (middle - low)
    falling = (high - frequency[:, None]) / (high - middle)
    weights = np.maximum(np.minimum(rising, falling), 0.0)
    # A triangle between two frequencies of the transform takes the nearest one.
    nearest = np.abs(frequency[:, None] - middle).argmin(0)
    empty = weights.sum(0) == 0
    weights[nearest[empty], np.flatnonzero(empty)] = 1.0
    found: NDArray[np.float64] = weights / weights.sum(0)
    return found


def sound(signature: Signature, architecture: str) -> tuple[int, int]:
    """Rate in Hz and length in samples.

    Raises:
        ModelError: the rows are not sound.
    """
    if not isinstance(signature.encoding, AudioEncoding):
        raise ModelError(
            f"{architecture} needs sound; the rows have the shape",
            list(signature.input_shape),
            "decode a column as audio, or choose another factory",
        )
    return signature.encoding.rate, signature.encoding.length
