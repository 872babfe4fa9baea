"""Rows from elsewhere: named files, and images made of nothing but a seed, or of an image's own pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orchestrator.config.data import EmbeddedData
from orchestrator.data.elsewhere import images_from_elsewhere, rows_from_elsewhere
from orchestrator.data.load import load
from orchestrator.errors import DataError
from tests.data import toy


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


def test_named_files_are_encoded_as_the_data_and_need_no_labels(tmp_path: Path) -> None:
    train = toy.write(tmp_path / "a.parquet", text=["fly to bonn", "play music"] * 30, label=toy.labels())
    toy.write(tmp_path / "oos.parquet", text=["what is fly music", ""], label=[150, 150])
    settings = toy.settings(train, elsewhere={"oos": "oos.parquet"})
    dataset = load(settings, seed=0, cache=tmp_path / "cache")
    found = rows_from_elsewhere(settings, dataset.signature)
    assert found["oos"][:, :2].tolist() == [[1, 1], [1, 0]]
    assert found["oos"][0, 2] > 1
    assert load(toy.settings(train), seed=0, cache=tmp_path / "cache").digest == dataset.digest


def test_named_files_of_images_and_numbers_are_decoded(tmp_path: Path) -> None:
    images = toy.image_file(tmp_path / "a.parquet")
    foreign = toy.pixels(5, seed=3)
    toy.image_file(tmp_path / "b.parquet", foreign, label=[9] * 5)
    settings = toy.settings(images, elsewhere={"others": "b.parquet"})
    signature = load(settings, seed=0, cache=tmp_path / "cache").signature
    found = rows_from_elsewhere(settings, signature)["others"]
    assert np.array_equal(found, foreign.transpose(0, 3, 1, 2))
    toy.image_file(tmp_path / "b.parquet", toy.pixels(5, (9, 9, 3)))
    with pytest.raises(DataError, match=r"data\.elsewhere\.others are not of the data's form"):
        rows_from_elsewhere(settings, signature)
    with pytest.raises(DataError, match="data file not found"):
        rows_from_elsewhere(toy.settings(images, elsewhere={"others": "none.parquet"}), signature)
    assert rows_from_elsewhere(EmbeddedData(), signature) == {}


def test_columns_of_named_files_may_stand_in_another_order(tmp_path: Path) -> None:
    train = toy.write(tmp_path / "a.parquet", a=np.arange(60.0), b=-np.arange(60.0), label=toy.labels())
    toy.write(tmp_path / "b.parquet", b=[-1.0], a=[1.0])
    settings = toy.settings(train, elsewhere={"others": "b.parquet"})
    signature = load(settings, seed=0, cache=tmp_path / "cache").signature
    assert rows_from_elsewhere(settings, signature)["others"].tolist() == [[1.0, -1.0]]
