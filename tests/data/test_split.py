"""Parts: seeded, stratified, disjoint, complete."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.config.data import PARTS, EmbeddedData, Shares
from orchestrator.data.load import load
from orchestrator.data.split import apportion, cut, cuts, free_shares
from orchestrator.errors import DataError
from tests.data import toy


def test_shares_without_a_test_file() -> None:
    shares = free_shares(Shares(), ())
    assert shares == pytest.approx(
        {"train": 0.6, "validation": 0.08, "calibration": 0.04, "contract": 0.08, "test": 0.2}
    )


def test_named_files_leave_their_shares_to_the_others() -> None:
    shares = free_shares(Shares(), ("validation", "test"))
    assert shares == pytest.approx({"train": 0.75 / 0.9, "calibration": 0.05 / 0.9, "contract": 0.1 / 0.9})


def test_held_out_parts_may_be_cut_from_the_validation_file() -> None:
    found = cuts(Shares(), ("validation", "test"), source="validation")
    assert found["train"] == {"train": 1.0}
    assert found["validation"] == pytest.approx({"validation": 0.4, "calibration": 0.2, "contract": 0.4})
    found = cuts(Shares(), ("validation", "contract"), source="validation")
    assert found["train"] == pytest.approx({"train": 0.8, "test": 0.2})
    assert found["validation"] == pytest.approx({"validation": 2 / 3, "calibration": 1 / 3})
    assert cuts(Shares(), ["validation"]) == {"train": free_shares(Shares(), ["validation"])}


@pytest.mark.parametrize("rows", [5, 6, 7, 25, 100, 1001])
def test_apportion_is_within_one_row_of_the_share(rows: int) -> None:
    shares = list(free_shares(Shares(), ()).values())
    counts = apportion(rows, shares)
    assert sum(counts) == rows
    assert min(counts) >= 1
    if rows >= 25:
        assert all(abs(count - rows * share) < 1 for count, share in zip(counts, shares, strict=True))


def test_largest_remainder_wins() -> None:
    assert apportion(10, [0.66, 0.24, 0.1]) == [7, 2, 1]
    assert apportion(10, [0.61, 0.29, 0.1]) == [6, 3, 1]


def test_cut_is_stratified_and_depends_on_the_seed() -> None:
    labels = np.repeat([0, 1], [900, 100])
    shares = free_shares(Shares(), ())
    parts = cut(1000, labels, shares, seed=0, origin="x", classes=("a", "b"))
    for name, rows in parts.items():
        assert np.bincount(labels[rows]).tolist() == [round(900 * shares[name]), round(100 * shares[name])]
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(1000))
    again = cut(1000, labels, shares, seed=0, origin="x", classes=("a", "b"))
    other = cut(1000, labels, shares, seed=1, origin="x", classes=("a", "b"))
    assert all(np.array_equal(parts[name], again[name]) for name in parts)
    assert not np.array_equal(parts["test"], other["test"])


def test_many_small_classes_do_not_all_round_the_same_way() -> None:
    labels = np.arange(700) % 100
    shares = free_shares(Shares(), frozenset(["test"]))
    parts = cut(700, labels, shares, seed=0, origin="x", classes=[str(label) for label in range(100)])
    assert all(np.bincount(labels[rows], minlength=100).min() >= 1 for rows in parts.values())
    labels = np.arange(700) % 20
    parts = cut(700, labels, shares, seed=0, origin="x", classes=[str(label) for label in range(20)])
    assert {name: len(rows) for name, rows in parts.items()} == {
        "train": 525,
        "validation": 70,
        "calibration": 35,
        "contract": 70,
    }


def test_the_first_rows_of_a_part_are_a_fair_sample() -> None:
    labels = np.repeat([0, 1], 500)
    parts = cut(1000, labels, free_shares(Shares(), ()), seed=0, origin="x", classes=("a", "b"))
    assert 0.35 < labels[parts["train"][:100]].mean() < 0.65


def test_regression_cut_needs_no_classes() -> None:
    parts = cut(200, None, free_shares(Shares(), ()), seed=3, origin="x")
    assert {name: len(rows) for name, rows in parts.items()} == {
        "train": 120,
        "validation": 16,
        "calibration": 8,
        "contract": 16,
        "test": 40,
    }


def test_a_class_too_small_and_too_few_rows() -> None:
    labels = np.repeat([0, 1], [96, 4])
    with pytest.raises(DataError, match=r"class 'rare' of x is too small to split into 5 parts.*4 rows"):
        cut(100, labels, free_shares(Shares(), ()), seed=0, origin="x", classes=("common", "rare"))
    with pytest.raises(DataError, match="too few rows in x: 19"):
        cut(19, None, free_shares(Shares(), ()), seed=0, origin="x")


def test_small_classes_may_be_spread() -> None:
    labels = np.repeat([0, 1, 2, 3], [90, 3, 1, 6])
    names = ("common", "few", "one", "enough")
    parts = cut(100, labels, free_shares(Shares(), ()), seed=0, origin="x", classes=names, spread=True)
    counts = {name: np.bincount(labels[rows], minlength=4).tolist() for name, rows in parts.items()}
    assert {name: found[1:3] for name, found in counts.items()} == {
        "train": [1, 1],
        "validation": [1, 0],
        "calibration": [0, 0],
        "contract": [0, 0],
        "test": [1, 0],
    }
    assert min(found[3] for found in counts.values()) == 1
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(100))
    shares = free_shares(Shares(), ["test"])
    with pytest.raises(DataError, match="class 'none' of x is too small"):
        cut(100, labels, shares, seed=0, origin="x", classes=(*names, "none"), spread=True)


@pytest.mark.parametrize("exponent", [1.0, 1.5, 2.0])
def test_a_long_tail_keeps_its_shares(exponent: float) -> None:
    """Zipf's law over 60 classes: every part has every class, and the parts' sizes hold to a row a class."""
    sizes = np.maximum(5, 3000 / np.arange(1, 61) ** exponent).astype(int)
    labels = np.repeat(np.arange(60), sizes)
    shares = free_shares(Shares(), ())
    parts = cut(len(labels), labels, shares, seed=0, origin="x", classes=tuple(map(str, range(60))))
    for name, rows in parts.items():
        counts = np.bincount(labels[rows], minlength=60)
        assert counts.min() >= 1
        large = sizes >= 30
        assert np.abs(counts - sizes * shares[name])[large].max() < 2


def test_named_files_become_parts(tmp_path: Path) -> None:
    train = toy.image_file(tmp_path / "train.parquet", toy.pixels(60))
    toy.image_file(tmp_path / "val.parquet", toy.pixels(9, seed=1))
    images = toy.pixels(12, seed=2)
    toy.image_file(tmp_path / "test.parquet", images)
    settings = toy.settings(train, validation="val.parquet", test="test.parquet", limit=50)
    dataset = load(settings, seed=0, cache=tmp_path / "cache")
    assert tuple(dataset.parts) == PARTS
    rows = dataset.facts["rows"]
    assert (rows["validation"], rows["test"]) == (9, 12)
    assert rows["train"] + rows["calibration"] + rows["contract"] == 50
    # Ids go on behind the whole train file, whatever the limit.
    assert sorted(dataset.part("validation").ids) == list(range(60, 69))
    test = dataset.part("test")
    assert sorted(test.ids) == list(range(69, 81))
    assert np.array_equal(test.inputs, images.transpose(0, 3, 1, 2)[np.asarray(test.ids) - 69])


def test_parts_cut_from_the_validation_file_leave_the_train_file_whole(tmp_path: Path) -> None:
    train = toy.image_file(tmp_path / "train.parquet", toy.pixels(60))
    toy.image_file(tmp_path / "val.parquet", toy.pixels(30, seed=1))
    toy.image_file(tmp_path / "test.parquet", toy.pixels(12, seed=2))
    settings = toy.settings(train, validation="val.parquet", test="test.parquet", cut_from="validation")
    dataset = load(settings, seed=0, cache=tmp_path / "cache")
    assert dataset.facts["rows"] == {
        "train": 60,
        "validation": 12,
        "calibration": 6,
        "contract": 12,
        "test": 12,
    }
    held = np.concatenate([dataset.part(name).ids for name in ("validation", "calibration", "contract")])
    assert sorted(held) == list(range(60, 90))
    assert (np.bincount(dataset.part("calibration").targets) == 2).all()
    with pytest.raises(ValidationError, match="needs a validation file"):
        toy.settings(train, cut_from="validation")


def test_a_validation_file_may_lack_a_class_where_small_classes_are_spread(tmp_path: Path) -> None:
    train = toy.image_file(tmp_path / "train.parquet", toy.pixels(60))
    labels = np.array([0, 1] * 15 + [2])
    toy.image_file(tmp_path / "val.parquet", toy.pixels(31, seed=1), label=labels)
    toy.image_file(tmp_path / "few.parquet", toy.pixels(30, seed=1), label=labels[:30])
    for file, spread, said in (
        ("val.parquet", None, "class '2' of .*too small"),
        ("few.parquet", None, "class '2' of .*0 rows"),
        ("val.parquet", "spread", None),
        ("few.parquet", "spread", None),
    ):
        settings = toy.settings(train, validation=file, cut_from="validation", small_classes=spread)
        if said is not None:
            with pytest.raises(DataError, match=said):
                load(settings, seed=0, cache=tmp_path / "cache")
            continue
        dataset = load(settings, seed=0, cache=tmp_path / "cache")
        held = [dataset.part(name).targets for name in ("validation", "calibration", "contract")]
        assert sum(map(len, held)) == (31 if file == "val.parquet" else 30)
    files = {"calibration": "val.parquet", "contract": "other.parquet"}
    toy.image_file(tmp_path / "other.parquet", toy.pixels(31, seed=2), label=labels)
    whole = toy.settings(train, validation="few.parquet", cut_from="validation", **files)
    assert len(load(whole, seed=0, cache=tmp_path / "cache").part("validation")) == 30


def test_digests_follow_rows_and_seed_not_places(tmp_path: Path) -> None:
    path = toy.image_file(tmp_path / "a.parquet")
    first = load(toy.settings(path), seed=0, cache=tmp_path / "one")
    again = load(toy.settings(path), seed=0, cache=tmp_path / "two")
    (tmp_path / "moved").mkdir()
    moved = load(toy.settings(path.rename(tmp_path / "moved" / "b.parquet")), seed=0, cache=tmp_path / "one")
    assert first.digest == again.digest == moved.digest
    assert first.facts["row_digests"] == again.facts["row_digests"]
    other = load(EmbeddedData(), seed=0, cache=tmp_path / "one")
    seeded = load(EmbeddedData(), seed=1, cache=tmp_path / "one")
    assert len({first.digest, other.digest, seeded.digest}) == 3
    changed = toy.pixels()
    changed[7, 0, 0, 0] ^= 1
    third = load(toy.settings(toy.image_file(path, changed)), seed=0, cache=tmp_path / "one")
    assert third.digest != first.digest
    differing = [k for k in PARTS if third.facts["row_digests"][k] != first.facts["row_digests"][k]]
    assert len(differing) == 1
