"""Shifted rows: pure, graded by severity, and what they say they are."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from orchestrator.config.encoding import Category, Number, TableEncoding
from orchestrator.config.signature import Signature
from orchestrator.errors import DataError
from orchestrator.measure.corrupt import SEVERITIES, STRENGTHS, Shift, corrupt, shifts

RNG = np.random.default_rng(0)
IMAGES = Signature(
    task="classification",
    input_shape=(3, 16, 12),
    input_dtype="uint8",
    outputs=2,
    mean=(128.0,) * 3,
    std=(64.0,) * 3,
)
TABLE = Signature(
    task="regression",
    input_shape=(3,),
    input_dtype="float32",
    outputs=1,
    mean=(1.0, 0.0, -50.0),
    std=(2.0, 1.0, 10.0),
)
MAPS = Signature(
    task="regression",
    input_shape=(2, 5, 4),
    input_dtype="float32",
    outputs=1,
    mean=(1.0, -50.0),
    std=(2.0, 10.0),
)
PICTURES = RNG.integers(0, 256, (40, 3, 16, 12), dtype=np.uint8)
ROWS = (RNG.normal(size=(400, 3)) * TABLE.std + TABLE.mean).astype(np.float32)
TEXT = Signature(task="classification", input_shape=(12,), input_dtype="int32", outputs=2, mean=(), std=())
TEXTS = np.where(RNG.random((40, 12)) < 0.8, RNG.integers(2, 50, (40, 12)), 0).astype(np.int32)
SOUND = Signature(task="classification", input_shape=(80,), input_dtype="int16", outputs=2, mean=(), std=())
SOUNDS = RNG.normal(0, 3000, (40, 80)).astype(np.int16)
CASES = [(IMAGES, PICTURES, shift) for shift in shifts(IMAGES)] + [
    (signature, rows, shift)
    for signature, rows in ((TABLE, ROWS), (TEXT, TEXTS), (SOUND, SOUNDS))
    for shift in shifts(signature)
]
every = pytest.mark.parametrize(("signature", "rows", "shift"), CASES, ids=[case[2] for case in CASES])


def shifted(
    signature: Signature, rows: npt.NDArray[Any], shift: Shift, severity: int = 3, seed: int = 0
) -> npt.NDArray[Any]:
    return corrupt(rows, np.arange(len(rows)), signature, shift, severity, seed=seed)


def test_every_kind_has_its_rows() -> None:
    assert {case[2] for case in CASES} == set(STRENGTHS)


@every
def test_shape_and_type_stay_and_rows_are_pure(
    signature: Signature, rows: npt.NDArray[Any], shift: Shift
) -> None:
    before = rows.copy()
    found = shifted(signature, rows, shift)
    assert (found.shape, found.dtype) == (rows.shape, rows.dtype)
    assert np.array_equal(rows, before)
    assert np.array_equal(found, shifted(signature, rows, shift))
    # A row does not depend on which others come with it, or where it stands.
    some = np.array([7, 2, 31])
    assert np.array_equal(corrupt(rows[some], some, signature, shift, 3, seed=0), found[some])


@every
def test_a_higher_severity_is_farther_away(
    signature: Signature, rows: npt.NDArray[Any], shift: Shift
) -> None:
    scale = np.asarray(signature.std or 1).reshape(-1, *(1,) * (rows.ndim - 2))
    away = [
        float(np.square((shifted(signature, rows, shift, severity) - rows.astype(np.float64)) / scale).mean())
        for severity in SEVERITIES
    ]
    assert away[0] > 0
    # The box filter of 12 pixels has steps: neighbours may be equal.
    assert all(low <= high for low, high in pairwise(away))
    assert away[-1] > 1.2 * away[0]


def test_seeds_and_severities_draw_other_noise() -> None:
    one, other = (shifted(TABLE, ROWS, "noise", seed=seed) - ROWS for seed in (0, 1))
    assert abs(np.corrcoef(one[:, 0], other[:, 0])[0, 1]) < 0.2
    weak, strong = (shifted(TABLE, ROWS, "noise", severity) - ROWS for severity in (1, 2))
    assert abs(np.corrcoef(weak[:, 0], strong[:, 0])[0, 1]) < 0.2


def test_noise_has_the_strength_that_it_says() -> None:
    spread = (shifted(TABLE, ROWS, "noise", 5) - ROWS).std(axis=0)
    assert spread == pytest.approx(0.5 * np.asarray(TABLE.std), rel=0.15)
    grey = np.full((40, 3, 16, 12), 128, np.uint8)
    assert shifted(IMAGES, grey, "gaussian_noise", 5).std() == pytest.approx(0.1 * 255, rel=0.05)


def test_missing_values_are_their_columns_means() -> None:
    found = shifted(TABLE, ROWS, "missing", 5)
    gone = found != ROWS
    assert gone.mean() == pytest.approx(0.4, abs=0.04)
    assert np.array_equal(found[gone], np.broadcast_to(np.asarray(TABLE.mean, np.float32), ROWS.shape)[gone])


def test_maps_of_numbers_have_a_mean_and_a_deviation_per_channel() -> None:
    scale, middle = (np.reshape(values, (2, 1, 1)) for values in (MAPS.std, MAPS.mean))
    rows = (RNG.normal(size=(200, 2, 5, 4)) * scale + middle).astype(np.float32)
    spread = (shifted(MAPS, rows, "noise", 5) - rows).std(axis=(0, 2, 3))
    assert spread == pytest.approx([1.0, 5.0], rel=0.15)
    found = shifted(MAPS, rows, "missing", 5)
    gone = found != rows
    assert np.array_equal(found[gone], np.broadcast_to(middle.astype(np.float32), rows.shape)[gone])


def test_tokens_become_unknown_and_filling_stays() -> None:
    found = shifted(TEXT, TEXTS, "unknown", 5)
    gone = found != TEXTS
    assert set(found[gone]) == {1}
    assert not gone[TEXTS == 0].any()
    assert gone[TEXTS > 0].mean() == pytest.approx(0.4, abs=0.06)


def test_hiss_is_as_loud_as_it_says_and_silence_stays() -> None:
    noise = shifted(SOUND, SOUNDS, "hiss", 2).astype(float) - SOUNDS
    assert noise.std() == pytest.approx(0.2 * SOUNDS.std(), rel=0.1)
    assert np.array_equal(shifted(SOUND, SOUNDS, "quiet", 1), np.rint(SOUNDS * 0.5))
    assert not shifted(SOUND, np.zeros_like(SOUNDS), "hiss", 5).any()


def test_codes_of_categories_are_lost_but_not_noisy() -> None:
    columns = (Number(name="a", fill=0.0), Category(name="b", values=("x", "y")))
    table = Signature(
        task="classification",
        input_shape=(2,),
        input_dtype="float32",
        outputs=2,
        mean=(1.0, 0.0),
        std=(2.0, 1.0),
        encoding=TableEncoding(columns=columns),
    )
    rows = np.stack([RNG.normal(size=100), RNG.integers(1, 3, 100)], axis=1).astype(np.float32)
    noisy = shifted(table, rows, "noise")
    assert np.array_equal(noisy[:, 1], rows[:, 1])
    assert not np.array_equal(noisy[:, 0], rows[:, 0])
    assert set(shifted(table, rows, "missing", 5)[:, 1]) == {0, 1, 2}


def test_an_even_picture_is_only_made_brighter_or_noisy() -> None:
    grey = np.full((2, 3, 16, 12), 100, np.uint8)
    for shift in ("gaussian_blur", "contrast", "pixelate"):
        assert np.array_equal(shifted(IMAGES, grey, shift), grey)
    assert np.unique(shifted(IMAGES, grey, "brightness", 2)).tolist() == [round(100 + 25.5)]
    white = np.full_like(grey, 250)
    assert shifted(IMAGES, white, "brightness", 5).max() == 255


def test_blur_and_pixelate_keep_the_mean_and_contrast_the_mean_of_each_channel() -> None:
    inner = np.zeros((1, 3, 16, 12), np.uint8)
    inner[:, :, 6:10, 4:8] = 200
    for shift in ("gaussian_blur", "pixelate"):
        assert shifted(IMAGES, inner, shift).mean() == pytest.approx(inner.mean(), rel=0.03)
    means = shifted(IMAGES, PICTURES, "contrast", 3).mean(axis=(2, 3))
    assert means == pytest.approx(PICTURES.mean(axis=(2, 3)), abs=0.3)
    assert shifted(IMAGES, PICTURES, "contrast", 3).std() == pytest.approx(0.4 * PICTURES.std(), rel=0.05)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="use noise, missing"):
        shifted(TABLE, ROWS, "contrast")
    with pytest.raises(DataError, match="use 1 to 5"):
        shifted(IMAGES, PICTURES, "contrast", 6)
