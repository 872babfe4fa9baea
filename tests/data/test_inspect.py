"""Suggested run files are valid and fit their data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.config.data import FolderData, ParquetData
from orchestrator.config.ensemble import Cascade, Parallel, WeightedMix
from orchestrator.config.load import parse_yaml, validate
from orchestrator.config.run import RunConfig
from orchestrator.data.inspect import suggest
from orchestrator.data.load import load
from orchestrator.errors import ConfigError, DataError
from tests.data import toy


def suggested(path: Path, tmp_path: Path) -> tuple[RunConfig, Any]:
    """The suggested run and its data, which must load."""
    text = suggest(path, "try")
    run = validate(RunConfig, parse_yaml(text, "test"), "test")
    assert text.startswith("# Run file for")
    assert run.search is not None
    assert len(run.ensembles) == 3
    assert len(run.models) == 3
    return run, load(run.data, seed=run.seed, cache=tmp_path / "cache")


def test_images_with_a_test_file(tmp_path: Path) -> None:
    toy.image_file(tmp_path / "x-test.parquet", toy.pixels(20, (20, 20, 3)))
    path = toy.image_file(tmp_path / "x-train.parquet", toy.pixels(60, (20, 20, 3)))
    run, dataset = suggested(path, tmp_path)
    assert isinstance(run.data, ParquetData)
    assert (run.data.input, run.data.target, run.data.test) == ("image", "label", "x-test.parquet")
    assert run.models["teacher"].model is not None
    assert run.models["teacher"].model.factory == "resnet"
    assert {type(tree) for tree in run.ensembles.values()} == {Parallel, Cascade, WeightedMix}
    assert dataset.signature.input_shape == (3, 20, 20)
    assert suggest(tmp_path, "try").splitlines()[2:] == suggest(path, "try").splitlines()[2:]


def test_images_of_many_sizes_are_resized(tmp_path: Path) -> None:
    images = [toy.png(toy.pixels(1, (100 + row % 3, 120, 3))[0]) for row in range(60)]
    path = toy.image_file(tmp_path / "a.parquet", image=toy.structs(images))
    run, dataset = suggested(path, tmp_path)
    assert isinstance(run.data, ParquetData)
    assert run.data.image.size == (64, 64)
    assert dataset.signature.input_shape == (3, 64, 64)


def test_tabular_classification(tmp_path: Path) -> None:
    columns = {f'feature "{k}", 10%: x{k}': np.arange(60) * k for k in range(12)}
    path = toy.write(tmp_path / "t.parquet", id=np.arange(60), **columns, species=["a", "b", "c"] * 20)
    run, dataset = suggested(path, tmp_path)
    assert isinstance(run.data, ParquetData)
    assert run.data.features == tuple(columns)
    assert run.data.target == "species"
    assert run.models["teacher"].model is not None
    assert run.models["teacher"].model.factory == "mlp"
    assert dataset.signature.classes == ("a", "b", "c")


def test_tabular_regression(tmp_path: Path) -> None:
    path = toy.write(
        tmp_path / "t.parquet", size=np.arange(60.0), age=np.arange(60) % 7, price=np.arange(60) * 1000.5
    )
    run, dataset = suggested(path, tmp_path)
    assert run.data.task == "regression"
    assert run.metric.name == "rmse"
    assert run.search is not None
    assert run.search.promise.max_drop == pytest.approx(0.05 * np.std(np.arange(60) * 1000.5), rel=0.05)
    assert not any(isinstance(tree, Cascade) for tree in run.ensembles.values())
    assert dataset.signature.outputs == 1


@pytest.mark.parametrize("form", ["text", "numbers", "flags"])
def test_several_labels(tmp_path: Path, form: str) -> None:
    sets = [["a", "b"], ["a"], [], ["b"]] * 15
    numbers = [["ab".index(name) for name in row] for row in sets]
    flags = [[int(name in row) for name in "ab"] for row in sets]
    labels = {
        "text": pa.array(sets, pa.list_(pa.string())),
        "numbers": pa.array(numbers, pa.list_(pa.int64())),
        "flags": pa.array(flags, pa.list_(pa.uint8(), 2)),
    }[form]
    path = toy.write(tmp_path / "t.parquet", size=np.arange(60.0), labels=labels)
    run, dataset = suggested(path, tmp_path)
    assert run.data.task == "multilabel"
    assert run.metric.name == "macro_f1"
    assert any(isinstance(tree, Cascade) for tree in run.ensembles.values())
    assert dataset.signature.outputs == 2


def test_vectors_and_tensors(tmp_path: Path) -> None:
    vectors = pa.array(np.random.default_rng(0).normal(size=(60, 4)).tolist(), pa.list_(pa.float32(), 4))
    path = toy.write(tmp_path / "v.parquet", embedding=vectors, label=toy.labels())
    run, dataset = suggested(path, tmp_path)
    assert dataset.signature.input_shape == (4,)
    assert run.models["small"].model is not None
    assert run.models["small"].model.factory == "mlp"


def test_a_column_s_name_may_have_lines(tmp_path: Path) -> None:
    columns = {"x\ny": list(np.zeros((60, 5), np.float32)), "label": toy.labels()}
    run, _ = suggested(toy.write(tmp_path / "a.parquet", **columns), tmp_path)
    assert isinstance(run.data, ParquetData)
    assert run.data.input == "x\ny"


@pytest.mark.parametrize("nested", [False, True])
def test_image_folders(tmp_path: Path, nested: bool) -> None:
    root = tmp_path / "pictures"
    for split in ("train", "test") if nested else (".",):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for row in range(12):
                (root / split / name / f"{row}.png").write_bytes(toy.png(toy.pixels(1, (8, 8))[0]))
    run, dataset = suggested(root, tmp_path)
    assert isinstance(run.data, FolderData)
    assert (run.data.test == "test") is nested
    assert dataset.signature.input_shape == (1, 8, 8)
    assert dataset.signature.classes == ("ant", "bee")


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="not found"):
        suggest(tmp_path / "none.parquet", "try")
    with pytest.raises(DataError, match="has no rows"):
        suggest(toy.write(tmp_path / "empty.parquet", text=pa.array([], pa.string()), label=[]), "try")
    with monkeypatch.context() as small:
        small.setattr("PIL.Image.MAX_IMAGE_PIXELS", 10)
        with pytest.raises(DataError, match=r"row 0 of large\.parquet holds no image"):
            suggest(toy.image_file(tmp_path / "large.parquet"), "try")
    path = toy.write(tmp_path / "a.parquet", scan=toy.structs([b"RIFF"] * 60), label=toy.labels())
    with pytest.raises(DataError, match=r"row 0 of a\.parquet holds no image"):
        suggest(path, "try")
    path = toy.write(tmp_path / "a.parquet", sound=toy.structs([b"RIFF"] * 60), label=toy.labels())
    with pytest.raises(DataError, match=r"row 0 of a\.parquet is no PCM WAV file"):
        suggest(path, "try")
    gaps = toy.write(tmp_path / "b.parquet", x=np.arange(60), label=toy.labels() + 1)
    with pytest.raises(DataError, match="without gaps"):
        suggest(gaps, "try")
    with pytest.raises(DataError, match="several Parquet files"):
        suggest(tmp_path, "try")
    good = toy.image_file(tmp_path / "c.parquet")
    with pytest.raises(ConfigError, match="name"):
        suggest(good, "no such name")
