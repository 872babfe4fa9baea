"""Bad data gets one clear sentence."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from orchestrator.config.data import CustomData, EmbeddedData, FolderData
from orchestrator.data.load import load
from orchestrator.errors import DataError, InputError
from tests.data import toy


def refused(settings: Any, tmp_path: Path, *parts: str, **more: Any) -> str:
    """The sentence of the refusal, which must hold all `parts`."""
    with pytest.raises(InputError) as found:
        load(settings, seed=0, cache=tmp_path / "cache", **more)
    text = str(found.value)
    for part in parts:
        assert part in text
    assert "\n" not in text
    assert "0x" not in text
    assert str(pickle.loads(pickle.dumps(found.value))) == text
    assert found.value.exit_code == 2
    assert not [path for path in (tmp_path / "cache").glob("*") if path.is_dir()]
    return text


def test_missing_file(tmp_path: Path) -> None:
    refused(
        toy.settings(tmp_path / "none.parquet"), tmp_path, "data file not found", "none.parquet", "data.root"
    )


def test_not_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("label,x\n1,2\n")
    refused(toy.settings(path), tmp_path, "cannot read as Parquet", "a.parquet")


def test_damaged_parquet(tmp_path: Path) -> None:
    path = toy.image_file(tmp_path / "a.parquet")
    data = bytearray(path.read_bytes())
    data[200:1200] = bytes(1000)
    path.write_bytes(data)
    refused(toy.settings(path), tmp_path, "a.parquet")


def test_unreadable_is_a_folder(tmp_path: Path) -> None:
    refused(toy.settings(tmp_path), tmp_path, "cannot read as Parquet")


@pytest.mark.parametrize(
    ("wrong", "parts"),
    [
        ({"target": "lable"}, ("data.target", "lable", "did you mean 'label'?", "image, label")),
        ({"input": "imgae"}, ("data.input", "imgae", "did you mean 'image'?")),
        ({"features": ["xyz"]}, ("data.features", "xyz", "there are: image, label")),
        ({"features": ["image"]}, ("data.features", "unsupported type", "struct", "numbers")),
        ({"target": "image"}, ("data.target", "unsupported type")),
        ({"input": "label"}, ("both input and target: label",)),
    ],
)
def test_wrong_column(tmp_path: Path, wrong: dict[str, Any], parts: tuple[str, ...]) -> None:
    refused(toy.settings(toy.image_file(tmp_path / "a.parquet"), **wrong), tmp_path, *parts)


def test_no_or_several_inputs(tmp_path: Path) -> None:
    days = toy.write(tmp_path / "a.parquet", day=pa.array([3] * 30, pa.date32()), label=toy.labels(30))
    refused(toy.settings(days), tmp_path, "no column of a.parquet can be the input", "day (date32[day])")
    images = toy.structs([toy.png(image) for image in toy.pixels(30)])
    two = toy.write(tmp_path / "b.parquet", left=images, right=images, label=toy.labels(30))
    refused(toy.settings(two), tmp_path, "several columns", "left, right", "set data.input")


@pytest.mark.parametrize(
    ("labels", "classes", "parts"),
    [
        ([-1, *toy.labels()[1:]], [], ("out of range", "none is 0")),
        ([-1, *toy.labels()[1:]], ["a", "b", "c"], ("row 0", "out of range", "-1", "0 to 2")),
        (toy.labels() + 1, [], ("out of range", "3 labels from 1 to 3, but none is 0", "without gaps")),
        (toy.labels(), ["a", "b"], ("row 2", "out of range: 2", "with 2 classes labels are 0 to 1")),
        ([None, *toy.labels()[1:].tolist()], [], ("row 0", "has no label in column 'label'")),
        ([0] * toy.ROWS, [], ("all labels of a.parquet are the same: 0", "at least two classes")),
        (toy.labels() / 2, [], ("cannot hold labels: double", "regression")),
        ([2**63, *toy.labels()[1:].tolist()], [], ("out of range",)),
        (["x", "y", "z"] * 20, ["x", "y", "zz"], ("row 2", "unknown label: z", "did you mean 'zz'?")),
        ([0, 0, 0, *[1] * 57], [], ("class '0'", "too small to split into 5 parts", "3 rows")),
    ],
)
def test_bad_labels(tmp_path: Path, labels: Any, classes: list[str], parts: tuple[str, ...]) -> None:
    column = pa.array(labels, pa.uint64()) if 2**63 in list(labels) else labels
    path = toy.image_file(tmp_path / "a.parquet", label=column)
    refused(toy.settings(path, classes=classes), tmp_path, *parts)


def test_a_label_that_only_the_test_file_has(tmp_path: Path) -> None:
    path = toy.image_file(tmp_path / "a.parquet")
    toy.image_file(tmp_path / "b.parquet", label=np.arange(toy.ROWS) % 4)
    refused(toy.settings(path, test="b.parquet"), tmp_path, "row 3 of b.parquet", "out of range: 3")


def test_text_that_is_no_utf8(tmp_path: Path) -> None:
    def column(row: int) -> pa.Array:
        values = pa.array([b"caf\xe9" if row == k else b"tea" for k in range(60)])
        return pa.Array.from_buffers(pa.string(), 60, values.buffers())

    for name, columns in (
        ("text", {"text": column(7), "label": toy.labels()}),
        ("label", {"a": np.arange(60.0), "label": column(7)}),
        ("category", {"a": np.arange(60.0), "b": column(7), "label": toy.labels()}),
    ):
        path = toy.write(tmp_path / f"{name}.parquet", **columns)
        more = {"decode": "features"} if name == "category" else {}
        refused(toy.settings(path, **more), tmp_path, f"row 7 of {name}.parquet", "no UTF-8")


def test_empty_lists_hold_no_features(tmp_path: Path) -> None:
    path = toy.write(
        tmp_path / "a.parquet", x=pa.array([[]] * 60, pa.list_(pa.float32())), label=toy.labels()
    )
    refused(toy.settings(path), tmp_path, "lists of a.parquet are empty")


def test_no_rows_are_of_two_parts(tmp_path: Path) -> None:
    path = toy.image_file(tmp_path / "a.parquet")
    refused(toy.settings(path, test="./a.parquet"), tmp_path, "data.test holds the rows of data.train")
    other = toy.image_file(tmp_path / "b.parquet", toy.pixels(seed=1)).name
    both = toy.settings(path, validation=other, test=other)
    refused(both, tmp_path, "data.test holds the rows of data.validation", "leave it out")
    folder = FolderData(root=str(tmp_path), test=f"./{tmp_path.name}")
    refused(folder, tmp_path, "data.test is the folder of data.root")


def test_corrupt_image_names_its_row(tmp_path: Path) -> None:
    images = [toy.png(image) for image in toy.pixels()]
    for row, data, said in [
        (41, images[41][:60], "cannot be decoded"),
        (3, b"hello", "are no image"),
        (30, b"", "are no image"),
    ]:
        column = toy.structs([*images[:row], data, *images[row + 1 :]])
        path = toy.image_file(tmp_path / "a.parquet", image=column)
        refused(toy.settings(path), tmp_path, f"row {row} of a.parquet", said)


@pytest.mark.parametrize("row", [0, 33])
def test_missing_image_names_its_row(tmp_path: Path, row: int) -> None:
    images: list[bytes | None] = [toy.png(image) for image in toy.pixels()]
    images[row] = None
    path = toy.image_file(tmp_path / "a.parquet", image=toy.structs(images))
    refused(toy.settings(path), tmp_path, f"row {row} of a.parquet has no image")


def test_images_of_different_sizes_and_modes(tmp_path: Path) -> None:
    images = [toy.png(image) for image in toy.pixels()]
    images[50] = toy.png(toy.pixels(1, (9, 5, 3))[0])
    path = toy.image_file(tmp_path / "a.parquet", image=toy.structs(images))
    refused(toy.settings(path), tmp_path, "row 50", "is 9x5, but the first one is 6x5", "data.image.size")
    gray = [toy.png(image) for image in toy.pixels(shape=(6, 5))]
    gray[12] = images[12]
    path = toy.image_file(tmp_path / "b.parquet", image=toy.structs(gray))
    refused(toy.settings(path), tmp_path, "row 12", "in colour (RGB)", "data.image.mode")


def test_sixteen_bit_images(tmp_path: Path) -> None:
    deep = [toy.png(image.astype(np.uint16) * 100) for image in toy.pixels(shape=(6, 5))]
    path = toy.image_file(tmp_path / "a.parquet", image=toy.structs(deep))
    refused(toy.settings(path), tmp_path, "row 0", "more than 8 bits")


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e300])
def test_features_that_are_not_finite(tmp_path: Path, value: float | None) -> None:
    column = pa.array([*np.arange(29.0), value, *np.arange(30.0)], pa.float64())
    path = toy.write(tmp_path / "a.parquet", x=np.arange(60), weight=column, label=toy.labels())
    refused(toy.settings(path), tmp_path, "row 29 of a.parquet", "column 'weight'")


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), 1e300])
def test_targets_that_are_not_finite(tmp_path: Path, value: float | None) -> None:
    column = pa.array([*np.arange(29.0), value, *np.arange(30.0)], pa.float64())
    path = toy.write(tmp_path / "a.parquet", x=np.arange(60), y=column)
    settings = toy.settings(path, target="y", task="regression")
    refused(settings, tmp_path, "row 29 of a.parquet has a target that is missing or not finite")


def test_a_null_inside_a_tensor(tmp_path: Path) -> None:
    rows = [[1, 2]] * 60
    path = toy.write(
        tmp_path / "a.parquet",
        x=pa.array([*rows[:7], [1, None], *rows[8:]], pa.list_(pa.float32(), 2)),
        label=toy.labels(),
    )
    refused(toy.settings(path), tmp_path, "row 7", "missing or not finite", "feature 1")
    path = toy.write(
        tmp_path / "a.parquet",
        x=pa.array([*rows[:7], None, *rows[8:]], pa.list_(pa.float32(), 2)),
        label=toy.labels(),
    )
    refused(toy.settings(path), tmp_path, "row 7")


def test_lists_of_different_lengths(tmp_path: Path) -> None:
    rows = [[1.0, 2.0]] * 59 + [[1.0]]
    path = toy.write(tmp_path / "a.parquet", x=pa.array(rows), label=toy.labels())
    refused(toy.settings(path), tmp_path, "differ in length", "[1, 2]")


def test_too_few_rows_and_none(tmp_path: Path) -> None:
    few = toy.image_file(tmp_path / "a.parquet", toy.pixels(19))
    refused(toy.settings(few), tmp_path, "too few rows in a.parquet: 19", "at least 20")
    none = toy.write(tmp_path / "b.parquet", x=pa.array([], pa.float32()), label=pa.array([], pa.int64()))
    refused(toy.settings(none), tmp_path, "no rows: b.parquet")


def test_train_and_test_of_different_shapes(tmp_path: Path) -> None:
    def vectors(name: str, width: int) -> Path:
        column = pa.array(np.ones((60, width)).tolist(), pa.list_(pa.float32(), width))
        return toy.write(tmp_path / name, x=column, label=toy.labels())

    train = vectors("a.parquet", 4)
    vectors("b.parquet", 3)
    refused(toy.settings(train, test="b.parquet"), tmp_path, "b.parquet", "another shape", "[3]", "[4]")


def test_folders(tmp_path: Path) -> None:
    refused(FolderData(root=str(tmp_path / "none")), tmp_path, "cannot read the image folder", "none")
    (tmp_path / "flat").mkdir()
    refused(FolderData(root=str(tmp_path / "flat")), tmp_path, "no class folders", "class/name.png")
    (tmp_path / "flat" / "ant").mkdir()
    refused(FolderData(root=str(tmp_path / "flat")), tmp_path, "holds no images", "ant")
    for name in ("ant", "bee"):
        (tmp_path / "flat" / name).mkdir(exist_ok=True)
        for row in range(12):
            (tmp_path / "flat" / name / f"{row:02}.png").write_bytes(toy.png(toy.pixels(1)[0]))
    (tmp_path / "flat" / "bee" / "05.png").write_bytes(b"PNG?")
    refused(FolderData(root=str(tmp_path / "flat")), tmp_path, "row 11 of flat (bee/05.png)", "no image")
    with pytest.raises(ValidationError, match="a folder gives each image one class"):
        FolderData(root=str(tmp_path / "flat"), task="regression")


def test_custom_arrays_of_a_wrong_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = CustomData(dataset="tests.data.toy:circles")
    gaps = (None, float("nan"), np.float32("nan"))

    def rows_of_text(gap: object) -> tuple[np.ndarray, np.ndarray]:
        labels = np.asarray(["a", "b"] * 15, object)
        labels[7] = gap
        return np.zeros((30, 2)), labels

    for returned, said in [
        (np.zeros((30, 2)), "must return (inputs, targets)"),
        ((np.zeros((30, 2)), np.zeros(29, int)), "different numbers of inputs and targets: 30 and 29"),
        ((np.zeros((30, 2, 2)), np.zeros(30, int)), "unsupported shape or type: float64 [30, 2, 2]"),
        ((np.zeros((30, 2)), np.zeros(30)), "cannot be labels"),
        (([np.zeros((1, 2, 2)), np.zeros((1, 3, 3))], np.zeros(2, int)), "the dataset function failed"),
        ((5, 6), "must return (inputs, targets)"),
        ((np.zeros((30, 2)), toy.labels(30), 3), "must return (inputs, targets)"),
        ((np.zeros((30, 2)), toy.labels(30), "abc"), "must return (inputs, targets)"),
        *((rows_of_text(gap), "row 7 of tests.data.toy:circles has no label. fill") for gap in gaps),
    ]:
        monkeypatch.setattr(toy, "circles", lambda returned=returned: returned)
        refused(settings, tmp_path, said, allowed=["tests.data.toy:circles"])


def test_regression_on_text(tmp_path: Path) -> None:
    path = toy.write(tmp_path / "a.parquet", x=np.arange(60), y=["a"] * 60)
    refused(toy.settings(path, target="y", task="regression"), tmp_path, "data.target", "unsupported type")


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="ORCHESTRATOR_CACHE"):
        load(EmbeddedData(), seed=0, cache=tmp_path / "file" / "cache")
