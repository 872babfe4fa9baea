"""Sound to samples: PCM WAV files, or waveforms at the encoding's rate.

The beginning is kept: what is longer is cut at its end, what is shorter is followed by silence.
"""

from __future__ import annotations

import io
import math
import wave
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from scipy.signal import resample_poly

from orchestrator.config.encoding import AudioEncoding
from orchestrator.data.dataset import Array
from orchestrator.errors import DataError

RATES = (1_000, 768_000)
"""Hz. Least and highest rate of a file: others would take memory without end to resample."""
LOUDEST = 2.0
"""Largest float sample that is clipped to 1; larger ones are on another scale."""
_STREAM = 2**32 - 256
"""Bytes. A length that a writer gives who does not know it."""


def audio_rows(encoding: AudioEncoding, values: Sequence[object], first_row: int, origin: str) -> Array:
    """`int16` [N, length]; see `orchestrator.data.encode.encode`."""
    rows = np.zeros((len(values), encoding.length), dtype=np.int16)
    for number, value in enumerate(values):
        place = f"row {first_row + number} of {origin}"
        samples = _samples(value, encoding, place)[: encoding.length]
        rows[number, : len(samples)] = samples
    return rows


def sound_of(value: object, rate: int | None, place: str) -> tuple[int, int]:
    """Number of samples and rate in Hz of a sound; `rate` is that of samples without a file.

    Raises:
        DataError: it is no sound, or nobody knows its rate.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        waves, found = read_wav(bytes(value), place)
        return len(waves), found
    if rate is None:
        raise DataError(f"{place} is no file that tells its rate", fix="set data.decode.rate")
    return len(_given(value, place)), rate


def read_wav(data: bytes, place: str = "the sound") -> tuple[Array, int]:
    """Samples `float32` [T, channels] in -1..1 and the rate in Hz of a PCM WAV file of 8, 16, 24 or 32 bits.

    Raises:
        DataError: it is no such file, is cut off, or holds no samples.
    """
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate, count = file.getparams()[:4]
            raw = file.readframes(count)
    # RuntimeError: a chunk says that it is longer than what holds it.
    except (wave.Error, EOFError, ValueError, ZeroDivisionError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or "it ends within its header"
        raise DataError(f"{place} is no PCM WAV file", reason, "send WAV with 8 to 32 bits PCM") from error
    if not RATES[0] <= rate <= RATES[1] or width not in (1, 2, 3, 4):
        raise DataError(
            f"{place} has an unsupported form",
            f"{rate} Hz, {8 * width} bits",
            f"rates from {RATES[0]} to {RATES[1]} Hz and 8, 16, 24 or 32 bits are read",
        )
    frame = width * channels
    found = len(raw) // frame
    if found == 0:
        raise DataError(f"{place} holds no samples", f"{len(data)} bytes")
    if found < count and count * frame < _STREAM:
        raise DataError(f"{place} is cut off", f"{found} of {count} samples", "send the whole file")
    return _scaled(raw[: found * frame], width).reshape(found, channels), rate


def _scaled(raw: bytes, width: int) -> Array:
    """`float32` in -1..1 of little-endian samples of `width` bytes; 8-bit ones have no sign."""
    if width == 1:
        return (np.frombuffer(raw, dtype=np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        wide = np.zeros((len(raw) // 3, 4), dtype=np.uint8)
        wide[:, 1:] = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 3)
        return wide.reshape(-1).view("<i4").astype(np.float32) / 2**31
    return np.frombuffer(raw, dtype=f"<i{width}").astype(np.float32) / np.float32(2 ** (8 * width - 1))


def _samples(value: object, encoding: AudioEncoding, place: str) -> Array:
    """`int16` [T] at the encoding's rate, T any."""
    if isinstance(value, bytes | bytearray | memoryview):
        waves, rate = read_wav(bytes(value), place)
        if rate == encoding.rate and waves.shape[1] == 1:
            return _whole(waves[: encoding.length, 0])
        return _whole(_resampled(waves, rate, encoding))
    given = _given(value, place)
    kept = given[: encoding.length]
    if given.dtype.kind == "f":
        return _whole(_float_samples(kept, place))
    if kept.min() < -(2**15) or kept.max() >= 2**15:
        raise DataError(f"{place} has a sample beyond 16 bits", f"{kept.min()} to {kept.max()}")
    return kept.astype(np.int16)


def _given(value: object, place: str) -> Array:
    """Samples [T] without a file, T >= 1, of any numbers."""
    try:
        given = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{place} is no sound", str(error)) from error
    if given.ndim != 1 or given.dtype.kind not in "iuf":
        raise DataError(
            f"{place} is no sound",
            f"{type(value).__name__} of {given.dtype} {list(given.shape)}",
            "send a WAV file, or samples [T] as floats in -1..1 or 16-bit integers",
        )
    if not len(given):
        raise DataError(f"{place} holds no samples")
    return given


def _float_samples(kept: Array, place: str) -> Array:
    loudest = np.abs(kept).max()
    if not np.isfinite(loudest):
        raise DataError(f"{place} has a sample that is not finite", loudest)
    if loudest > LOUDEST:
        raise DataError(
            f"{place} has float samples beyond -1..1", loudest, "scale them, or send 16-bit integers"
        )
    return kept


def _resampled(waves: Array, rate: int, encoding: AudioEncoding) -> Array:
    """One channel (the mean of all) at the encoding's rate, by a polyphase filter."""
    # A ratio of small numbers: the filter's length is that of the larger one. Its error is below 1e-5.
    ratio = Fraction(encoding.rate, rate).limit_denominator(1000)
    ratio = ratio if ratio else Fraction(encoding.rate, rate)
    reach = 10 * max(1, math.ceil(1 / ratio)) + 1
    needed = math.ceil(encoding.length / ratio) + reach
    mono = waves[:needed].mean(axis=1, dtype=np.float64)
    return np.asarray(resample_poly(mono, ratio.numerator, ratio.denominator))


def _whole(samples: Array) -> Array:
    """`int16` of floats in -1..1; 16-bit samples come back as they were."""
    return np.clip(np.rint(samples * 2.0**15), -(2**15), 2**15 - 1).astype(np.int16)
