"""Every layout comes out as the rows that went in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from orchestrator.config.data import CustomData, DataSettings, EmbeddedData, FolderData
from orchestrator.config.decode import TextDecode
from orchestrator.config.encoding import Category
from orchestrator.data.arrays import from_arrays
from orchestrator.data.dataset import Dataset
from orchestrator.data.elsewhere import rows_from_elsewhere
from orchestrator.data.encode import encode
from orchestrator.data.fit import fit
from orchestrator.data.load import load
from orchestrator.errors import DataError, ModelError
from tests.data import toy


def rows_of(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """All rows of all parts in source order."""
    ids = np.concatenate([part.ids for part in dataset.parts.values()])
    order = np.argsort(ids)
    assert ids[order].tolist() == list(range(len(ids)))
    inputs = np.concatenate([part.inputs for part in dataset.parts.values()])[order]
    return inputs, np.concatenate([part.targets for part in dataset.parts.values()])[order]


def read(settings: DataSettings, tmp_path: Path, **more: Any) -> Dataset:
    return load(settings, seed=0, cache=tmp_path / "cache", **more)


def test_embedded_digits_are_the_uci_digits(tmp_path: Path) -> None:
    dataset = read(EmbeddedData(), tmp_path)
    inputs, targets = rows_of(dataset)
    assert inputs.shape == (1797, 1, 8, 8)
    assert inputs.dtype == np.uint8
    assert np.bincount(targets).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    original = pytest.importorskip("sklearn.datasets").load_digits()
    assert np.array_equal(inputs[:, 0], np.rint(original.images * 255 / 16))
    assert np.array_equal(targets, original.target)


def test_embedded_digits_carry_their_licence() -> None:
    import orchestrator.data

    notice = (Path(orchestrator.data.__file__).parent / "embedded" / "NOTICE.txt").read_text()
    assert "CC BY 4.0" in notice
    assert "10.24432/C50P49" in notice


@pytest.mark.parametrize("column", ["image", "img", "scan"])
def test_encoded_rgb_images(tmp_path: Path, column: str) -> None:
    images = toy.pixels()
    path = toy.write(
        tmp_path / "a.parquet",
        **{column: toy.structs([toy.png(image) for image in images]), "label": toy.labels()},
    )
    dataset = read(toy.settings(path), tmp_path)
    inputs, targets = rows_of(dataset)
    assert np.array_equal(inputs, images.transpose(0, 3, 1, 2))
    assert np.array_equal(targets, toy.labels())
    assert dataset.signature.input_shape == (3, 6, 5)
    assert dataset.signature.classes == ("0", "1", "2")


def test_raw_bytes_gray_images_and_a_renamed_label(tmp_path: Path) -> None:
    images = toy.pixels(shape=(6, 5))
    path = toy.write(
        tmp_path / "a.parquet",
        picture=pa.array([toy.png(image) for image in images], pa.binary()),
        digit=toy.labels(),
    )
    inputs, _ = rows_of(read(toy.settings(path, target="digit"), tmp_path))
    assert np.array_equal(inputs, images[:, None])


def test_the_named_one_of_two_image_columns(tmp_path: Path) -> None:
    masks = toy.pixels(shape=(6, 5), seed=1)
    path = toy.image_file(tmp_path / "a.parquet", mask=toy.structs([toy.png(mask) for mask in masks]))
    inputs, _ = rows_of(read(toy.settings(path, input="mask"), tmp_path))
    assert np.array_equal(inputs, masks[:, None])


def test_images_are_resized_and_converted(tmp_path: Path) -> None:
    images = [toy.png(toy.pixels(1, (4 + row % 3, 7, 3), seed=row)[0]) for row in range(toy.ROWS)]
    path = toy.write(tmp_path / "a.parquet", image=toy.structs(images), label=toy.labels())
    dataset = read(toy.settings(path, image={"mode": "L", "size": [8, 6]}), tmp_path)
    assert dataset.signature.input_shape == (1, 8, 6)


@pytest.mark.parametrize(
    ("shape", "names", "expected"),
    [
        ((3, 4, 5), None, (3, 4, 5)),
        ((4, 5, 3), None, (3, 4, 5)),
        ((4, 5, 2), ["H", "W", "C"], (2, 4, 5)),
        ((4, 5), None, (1, 4, 5)),
    ],
)
def test_tensor_images(
    tmp_path: Path, shape: tuple[int, ...], names: list[str] | None, expected: tuple[int, ...]
) -> None:
    images = toy.pixels(shape=shape)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), int(np.prod(shape)))
    kind = pa.fixed_shape_tensor(pa.uint8(), list(shape), dim_names=names)
    path = toy.write(
        tmp_path / "a.parquet",
        pixels=pa.ExtensionArray.from_storage(kind, storage),
        label=toy.labels(),
    )
    inputs, _ = rows_of(read(toy.settings(path), tmp_path))
    assert inputs.shape[1:] == expected
    if len(shape) == 2:
        images = images[:, None]
    elif shape != expected:
        images = images.transpose(0, 3, 1, 2)
    assert np.array_equal(inputs, images)


def test_a_permuted_tensor(tmp_path: Path) -> None:
    images = toy.pixels(shape=(4, 5, 3))
    kind = pa.fixed_shape_tensor(pa.uint8(), [4, 5, 3], permutation=[2, 0, 1])
    storage = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), 60)
    path = toy.write(
        tmp_path / "a.parquet", x=pa.ExtensionArray.from_storage(kind, storage), label=toy.labels()
    )
    inputs, _ = rows_of(read(toy.settings(path), tmp_path))
    assert np.array_equal(inputs, images.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("kind", [pa.list_(pa.float64(), 4), pa.list_(pa.float32()), pa.list_(pa.int16(), 4)])
def test_vectors_are_feature_rows(tmp_path: Path, kind: pa.DataType) -> None:
    values = np.random.default_rng(0).integers(-50, 50, (toy.ROWS, 4))
    path = toy.write(tmp_path / "a.parquet", v=pa.array(values.tolist(), kind), label=toy.labels())
    dataset = read(toy.settings(path), tmp_path)
    inputs, _ = rows_of(dataset)
    assert np.array_equal(inputs, values.astype(np.float32))
    assert dataset.signature.input_dtype == "float32"


def test_nested_lists_of_bytes_are_images(tmp_path: Path) -> None:
    images = toy.pixels(shape=(3, 4, 5))
    nested = pa.array(images.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))
    inputs, _ = rows_of(
        read(toy.settings(toy.write(tmp_path / "a.parquet", x=nested, label=toy.labels())), tmp_path)
    )
    assert np.array_equal(inputs, images)


def table(tmp_path: Path, **more: Any) -> Path:
    rng = np.random.default_rng(0)
    columns = {
        "age": rng.integers(18, 90, toy.ROWS),
        "income": rng.normal(1000, 200, toy.ROWS),
        "owner": rng.random(toy.ROWS) < 0.5,
        "city": ["a"] * toy.ROWS,
        "label": toy.labels(),
    }
    return toy.write(tmp_path / "table.parquet", **{**columns, **more})


def test_numeric_columns_found_and_named(tmp_path: Path) -> None:
    path = table(tmp_path)
    found = read(toy.settings(path), tmp_path)
    assert found.facts["features"] == ["age", "income", "owner"]
    named = read(toy.settings(path, features=["income", "age"]), tmp_path)
    both, one = rows_of(found)[0], rows_of(named)[0]
    assert np.array_equal(both[:, [1, 0]], one)
    assert both.dtype == np.float32


def test_columns_that_are_found_have_the_train_file_s_order_in_every_file(tmp_path: Path) -> None:
    columns = {"a": np.arange(60.0), "b": -np.arange(60.0), "label": toy.labels()}
    train = toy.write(tmp_path / "train.parquet", **columns)
    other = {name: columns[name] for name in ("b", "label", "a")}
    toy.write(tmp_path / "test.parquet", **other, remark=["none"] * 60)
    dataset = read(toy.settings(train, test="test.parquet"), tmp_path)
    assert (dataset.part("train").inputs[:, 0] >= 0).all()
    assert (dataset.part("test").inputs[:, 0] >= 0).all()
    toy.write(tmp_path / "test.parquet", **columns | {"b": ["x"] * 60})
    with pytest.raises(DataError, match=r"test\.parquet must hold what train\.parquet does: features"):
        read(toy.settings(train, test="test.parquet"), tmp_path)
    toy.write(tmp_path / "test.parquet", a=np.arange(60.0), bb=np.zeros(60), label=toy.labels())
    with pytest.raises(DataError, match=r"no column of test\.parquet has this name: b\. did you mean 'bb'"):
        read(toy.settings(train, test="test.parquet"), tmp_path)


def test_the_train_file_s_column_is_read_from_every_file(tmp_path: Path) -> None:
    """Another one that is called more usually is left alone; rows from elsewhere may have only that."""
    says, other = ["play music", "fly there"] * 30, ["nothing at all"] * 60
    train = toy.write(tmp_path / "a.parquet", sentence=says, label=toy.labels())
    toy.write(tmp_path / "test.parquet", text=other, sentence=says, label=toy.labels())
    toy.write(tmp_path / "oos.parquet", text=other, sentence=says)
    toy.write(tmp_path / "strange.parquet", text=other)
    settings = toy.settings(
        train, test="test.parquet", elsewhere={"oos": "oos.parquet", "strange": "strange.parquet"}
    )
    found = read(settings, tmp_path)
    known = {tuple(row) for row in found.part("train").inputs.tolist()}
    assert {tuple(row) for row in found.part("test").inputs.tolist()} == known
    foreign = rows_from_elsewhere(settings, found.signature)
    assert {tuple(row) for row in foreign["oos"].tolist()} == known
    assert known.isdisjoint(tuple(row) for row in foreign["strange"].tolist())


def test_one_number_as_a_tensor_in_two_files(tmp_path: Path) -> None:
    train = toy.write(tmp_path / "train.parquet", a=np.arange(60.0), label=toy.labels())
    toy.write(tmp_path / "test.parquet", a=-np.arange(60.0), label=toy.labels())
    dataset = read(toy.settings(train, test="test.parquet", decode="tensor"), tmp_path)
    assert dataset.part("test").inputs.shape == (60, 1)


def test_signature_is_of_the_train_part(tmp_path: Path) -> None:
    dataset = read(toy.settings(table(tmp_path, flat=[5.0] * toy.ROWS)), tmp_path)
    train = np.asarray(dataset.part("train").inputs, dtype=np.float64)
    assert np.allclose(dataset.signature.mean, train.mean(axis=0))
    assert np.allclose(dataset.signature.std[:3], train.std(axis=0)[:3])
    assert dataset.signature.std[3] == 1.0
    images = read(EmbeddedData(), tmp_path)
    pixels = np.asarray(images.part("train").inputs, dtype=np.float64)
    assert images.signature.mean == pytest.approx((pixels.mean(),))
    assert images.signature.std == pytest.approx((pixels.std(),))


def test_regression_with_several_targets(tmp_path: Path) -> None:
    path = table(tmp_path, price=np.arange(toy.ROWS) * 2.0)
    dataset = read(
        toy.settings(path, task="regression", target=["price", "income"], features=["age"]), tmp_path
    )
    _, targets = rows_of(dataset)
    assert targets.shape == (toy.ROWS, 2)
    assert np.array_equal(targets[:, 0], np.arange(toy.ROWS) * 2.0)
    train = np.asarray(dataset.part("train").targets, dtype=np.float64)
    assert np.allclose(dataset.signature.target_mean, train.mean(axis=0))
    assert np.allclose(dataset.signature.target_std, train.std(axis=0))
    assert dataset.signature.outputs == 2
    assert dataset.signature.classes == ()


@pytest.mark.parametrize("coded", [False, True])
def test_text_labels_are_sorted_classes(tmp_path: Path, coded: bool) -> None:
    text = pa.array([["ox", "bee", "cat"][label] for label in toy.labels()])
    path = table(tmp_path, label=text.dictionary_encode() if coded else text)
    dataset = read(toy.settings(path), tmp_path)
    assert dataset.signature.classes == ("bee", "cat", "ox")
    assert rows_of(dataset)[1][:3].tolist() == [2, 0, 1]


def test_boolean_labels_and_given_class_names(tmp_path: Path) -> None:
    path = table(tmp_path, label=toy.labels() == 1)
    assert read(toy.settings(path), tmp_path).signature.classes == ("false", "true")
    named = read(toy.settings(table(tmp_path), classes=["x", "y", "z"]), tmp_path)
    assert named.signature.classes == ("x", "y", "z")


def folder(root: Path, per_class: int = 12) -> Path:
    for number, name in enumerate(("ant", "bee")):
        (root / name).mkdir(parents=True)
        for image in range(per_class):
            (root / name / f"{image:03}.png").write_bytes(toy.png(toy.pixels(1, (4, 4), seed=number)[0]))
    return root


def test_image_folder_with_a_test_folder(tmp_path: Path) -> None:
    folder(tmp_path / "train")
    folder(tmp_path / "test", 3)
    dataset = read(FolderData(root=str(tmp_path / "train"), test="test"), tmp_path)
    assert dataset.signature.classes == ("ant", "bee")
    assert dataset.facts["rows"]["test"] == 6
    assert sorted(dataset.part("test").ids) == list(range(24, 30))
    for part in dataset.parts.values():
        for image, target in zip(part.inputs, part.targets, strict=True):
            assert np.array_equal(image[0], toy.pixels(1, (4, 4), seed=int(target))[0])


def test_limit_of_a_folder_takes_all_classes(tmp_path: Path) -> None:
    dataset = read(FolderData(root=str(folder(tmp_path / "all")), limit=20), tmp_path)
    assert np.sum(list(dataset.facts["class_counts"].values()), axis=0).tolist() == [10, 10]


def test_custom_data_set(tmp_path: Path) -> None:
    settings = CustomData(dataset="tests.data.toy:circles", kwargs={"rows": 90})
    dataset = read(settings, tmp_path, allowed=["tests.data.toy:circles"])
    assert dataset.signature.classes == ("inside", "outside")
    inputs, targets = rows_of(dataset)
    points, expected, _ = toy.circles(90)
    assert np.array_equal(inputs, points)
    assert np.array_equal(targets, expected)


def test_own_code_runs_only_when_allowed(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not allowed"):
        read(CustomData(dataset="tests.data.toy:circles"), tmp_path)
    path = toy.image_file(tmp_path / "a.parquet")
    with pytest.raises(ModelError, match="not allowed"):
        read(toy.settings(path, transform="tests.data.toy:halved"), tmp_path)


def test_a_failing_function_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"function failed \(RuntimeError: no such sensor\)"):
        read(CustomData(dataset="tests.data.toy:broken"), tmp_path, allowed=["tests.data.toy:broken"])


def test_transform_changes_the_rows(tmp_path: Path) -> None:
    images = toy.pixels()
    path = toy.image_file(tmp_path / "a.parquet", images)
    allowed = ["tests.data.toy:halved", "tests.data.toy:shorter"]
    dataset = read(toy.settings(path, transform=allowed[0]), tmp_path, allowed=allowed)
    assert np.array_equal(rows_of(dataset)[0], images.transpose(0, 3, 1, 2)[:, :, ::2, ::2])
    with pytest.raises(DataError, match="keep the number of rows"):
        read(toy.settings(path, transform=allowed[1]), tmp_path, allowed=allowed)


def test_transform_may_fill_gaps(tmp_path: Path) -> None:
    values = [None, *range(1, toy.ROWS)]
    path = toy.write(tmp_path / "a.parquet", x=pa.array(values, pa.int64()), label=toy.labels())
    dataset = read(
        toy.settings(path, transform="tests.data.toy:imputed"), tmp_path, allowed=["tests.data.toy:imputed"]
    )
    assert rows_of(dataset)[0][:, 0].tolist() == list(range(toy.ROWS))


def test_embedded_tables_are_those_of_their_sources(tmp_path: Path) -> None:
    dataset = read(EmbeddedData(name="breast_cancer"), tmp_path)
    inputs, targets = rows_of(dataset)
    assert dataset.signature.classes == ("benign", "malignant")
    assert np.bincount(targets).tolist() == [357, 212]
    original = pytest.importorskip("sklearn.datasets").load_breast_cancer()
    assert np.array_equal(inputs, original.data.astype(np.float32))
    assert np.array_equal(targets, 1 - original.target)
    names = [column.name for column in dataset.signature.encoding.columns]  # type: ignore[union-attr]
    assert names == [name.replace(" ", "_") for name in original.feature_names]


def test_an_embedded_table_takes_no_transform() -> None:
    with pytest.raises(ValidationError, match="which a 'transform' would not see"):
        EmbeddedData(name="breast_cancer", transform="tests.data.toy:halved")
    assert EmbeddedData(transform="tests.data.toy:halved").transform is not None


def test_an_embedded_table_for_regression_has_a_category(tmp_path: Path) -> None:
    dataset = read(EmbeddedData(name="gapminder", task="regression"), tmp_path)
    inputs, targets = rows_of(dataset)
    assert inputs.shape == (1704, 4)
    assert (inputs[0].tolist(), targets[0, 0]) == (
        [3, 1952, 8425333, pytest.approx(779.445)],
        pytest.approx(28.801),
    )
    continents = dataset.signature.encoding.columns[0]  # type: ignore[union-attr]
    assert continents == Category(
        name="continent", values=("Africa", "Americas", "Asia", "Europe", "Oceania")
    )
    with pytest.raises(ValidationError, match="task: regression"):
        EmbeddedData(name="gapminder")


def test_arrays_may_be_raw() -> None:
    texts = [f"word{row % 3} here" for row in range(toy.ROWS)]
    encoding = fit(TextDecode(), [texts[:30], texts[30:]], "these texts")
    dataset = from_arrays(texts, toy.labels(), encoding=encoding)
    assert (dataset.signature.input_dtype, dataset.signature.mean) == ("int32", ())
    part = dataset.part("test")
    assert np.array_equal(part.inputs, encode(encoding, [texts[row] for row in part.ids]))
    with pytest.raises(DataError, match="row 1 of the arrays is no text"):
        from_arrays(["a", 2], [0, 1], encoding=encoding)
