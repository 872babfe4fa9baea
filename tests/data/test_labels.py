"""Several labels a row: every form of them, what is refused, and parts that keep each label's share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.config.data import PARTS, CustomData, Shares
from orchestrator.data.arrays import from_arrays
from orchestrator.data.dataset import Dataset
from orchestrator.data.load import load
from orchestrator.data.split import cut, free_shares
from orchestrator.errors import DataError, InputError
from tests.data import toy

NAMES = ("even", "large", "prime")


def flags(rows: int = toy.ROWS) -> np.ndarray:
    """Of the numbers 0, 1, 2, ...: even, above 6 of 10, prime."""
    digits = np.arange(rows) % 10
    return np.stack([digits % 2 == 0, digits > 6, np.isin(digits, (2, 3, 5, 7))], axis=1).astype(np.int64)


def flagged() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """For `dataset`."""
    return np.arange(toy.ROWS, dtype=np.float32)[:, None], flags(), list(NAMES)


def broken_flags() -> tuple[np.ndarray, np.ndarray]:
    """One of them is 2."""
    return np.arange(toy.ROWS, dtype=np.float32)[:, None], flags() * 2


def column(form: str) -> pa.Array:
    sets = [np.flatnonzero(row).tolist() for row in flags()]
    if form == "numbers":
        return pa.array(sets, pa.list_(pa.int64()))
    if form == "text":
        return pa.array([[NAMES[label] for label in row] for row in sets], pa.list_(pa.string()))
    kind = pa.bool_() if form == "booleans" else pa.int8()
    return pa.array(flags().astype(bool if form == "booleans" else np.int8).tolist(), pa.list_(kind, 3))


def loaded(tmp_path: Path, label: pa.Array, **more: Any) -> Dataset:
    path = toy.write(tmp_path / "sets.parquet", x=np.arange(toy.ROWS, dtype=np.float64), label=label)
    settings = toy.settings(path, task="multilabel", **more)
    return load(settings, seed=0, cache=tmp_path / "cache")


@pytest.mark.parametrize("form", ["text", "numbers", "flags", "booleans"])
def test_every_form_gives_the_same_labels(tmp_path: Path, form: str) -> None:
    names = NAMES if form != "text" else ()
    found = loaded(tmp_path, column(form), classes=names)
    assert found.signature.classes == NAMES
    assert (found.signature.task, found.signature.outputs) == ("multilabel", 3)
    assert found.signature.target_mean == ()
    truth = flags()
    for name in PARTS:
        part = found.part(name)
        assert part.targets.dtype == np.int8
        np.testing.assert_array_equal(part.targets, truth[part.ids])
        assert found.facts["class_counts"][name] == part.targets.sum(axis=0).tolist()


def test_without_names_columns_and_numbers_are_numbered(tmp_path: Path) -> None:
    assert loaded(tmp_path, column("flags")).signature.classes == ("0", "1", "2")
    assert loaded(tmp_path, column("numbers")).signature.classes == ("0", "1", "2")


def test_a_function_gives_columns_of_0_and_1(tmp_path: Path) -> None:
    settings = CustomData(dataset=f"{__name__}:flagged", task="multilabel")
    found = load(settings, seed=0, cache=tmp_path / "cache", allowed=[settings.dataset])
    assert found.signature.classes == NAMES
    settings = CustomData(dataset=f"{__name__}:broken_flags", task="multilabel")
    with pytest.raises(DataError, match=r"row 0 of .* neither 0 nor 1: 2"):
        load(settings, seed=0, cache=tmp_path / "cache", allowed=[settings.dataset])


@pytest.mark.parametrize(
    ("label", "more", "said"),
    [
        (pa.array([["a", "b"], ["a", "zebra"]] * 30), {"classes": ("a", "b")}, "row 1 of .*unknown label: z"),
        (pa.array([[0, 1], [2]] * 30), {"classes": ("a", "b")}, "row 1 of .*label out of range: 2"),
        (pa.array([[0, 1], [-1]] * 30), {}, "row 1 of .*label out of range: -1"),
        (pa.array([[0, 2]] * 60), {}, "no row of sets.parquet has the label: 1"),
        (pa.array([["a"]] * 60), {"classes": ("a", "b")}, "no row of sets.parquet has the label: b"),
        (pa.array([[]] * 60, pa.list_(pa.string())), {}, "no row of sets.parquet has a label"),
        (pa.array([["a"], None] * 30), {}, "row 1 of sets.parquet has a null"),
        (pa.array([["a"], ["b", None]] * 30), {}, "row 1 of sets.parquet has a null"),
        (pa.array([[0, 1]] * 60, pa.list_(pa.int64(), 2)), {"classes": ("a",)}, "2 columns of labels.*: 1"),
        (pa.array([[0, 3]] * 60, pa.list_(pa.int64(), 2)), {}, "row 0 of .*neither 0 nor 1: 3"),
        (pa.array([[0.5]] * 60), {}, "cannot hold several labels: list<"),
        (pa.array(["a"] * 60), {}, "unsupported type: string. supported here: tensors, lists of text"),
        (pa.array([["a"]] * 57 + [["a", "b"]] * 3), {}, "class 'b' of .* too small .*: 3 rows"),
    ],
)
def test_what_is_refused(tmp_path: Path, label: pa.Array, more: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        loaded(tmp_path, label, **more)


def test_a_rare_label_may_be_spread(tmp_path: Path) -> None:
    found = loaded(tmp_path, pa.array([["a"]] * 57 + [["a", "b"]] * 3), small_classes="spread")
    counts = {name: sizes[1] for name, sizes in found.facts["class_counts"].items()}
    assert counts == {"train": 1, "test": 1, "validation": 1, "contract": 0, "calibration": 0}


def test_parts_keep_each_labels_share() -> None:
    rng = np.random.default_rng(0)
    shares = free_shares(Shares(), ())
    common = rng.random((2000, 1)) < 0.5
    labels = (rng.random((2000, 6)) < np.array([0.5, 0.3, 0.1, 0.05, 0.02, 0.01])) & (
        common | (rng.random((2000, 6)) < 0.3)
    )
    labels = labels.astype(np.int8)
    names = tuple("abcdef")
    parts = cut(2000, labels, shares, seed=3, origin="x", classes=names)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(2000))
    for part, rows in parts.items():
        assert len(rows) == pytest.approx(2000 * shares[part], abs=8)
        wanted = labels.sum(axis=0) * shares[part]
        assert np.abs(labels[rows].sum(axis=0) - wanted).max() <= 3
        assert labels[rows].any(axis=0).all()
    again = cut(2000, labels, shares, seed=3, origin="x", classes=names)
    other = cut(2000, labels, shares, seed=4, origin="x", classes=names)
    assert all(np.array_equal(parts[part], again[part]) for part in parts)
    assert not np.array_equal(parts["test"], other["test"])


def test_arrays_in_memory() -> None:
    rows = np.zeros((60, 2), dtype=np.float32)
    found = from_arrays(rows, flags(), classes=NAMES, task="multilabel")
    assert found.signature.classes == NAMES
    assert found.part("train").targets.dtype == np.int8
    assert from_arrays(rows, flags()).signature.task == "regression"
    with pytest.raises(DataError, match="do not fit task multilabel"):
        from_arrays(rows, flags()[:, 0], task="multilabel")
