"""Raw columns become rows by an encoding that is fitted to train rows alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer

from orchestrator.config.data import ParquetData
from orchestrator.config.encoding import AudioEncoding, Category, Number, TableEncoding, TextEncoding, Tokens
from orchestrator.data.dataset import Dataset
from orchestrator.data.encode import encode
from orchestrator.data.load import load
from orchestrator.data.text import FILLING_TOKEN, UNKNOWN_TOKEN
from orchestrator.errors import DataError
from tests.data import toy
from tests.data.test_encode import wav

FOLDER = os.environ.get("ORCHESTRATOR_TEST_DATA", "")
VIEWS = {
    "words": {"kind": "words"},
    "subwords": {"kind": "subwords", "vocabulary": 300},
    "grams": {"kind": "ngrams"},
}
TOWNS = ["Ulm", "Bonn", "Köln"]


def read(settings: ParquetData, tmp_path: Path, **more: Any) -> Dataset:
    return load(settings, seed=0, cache=tmp_path / "cache", **more)


def text_file(path: Path, rows: int = toy.ROWS) -> Path:
    """Every row has a word of its own."""
    texts = [f"Fly me to {TOWNS[row % 3]} number{row}" + " please" * (row % 4) for row in range(rows)]
    return toy.write(path, text=texts, label=toy.labels(rows))


def tokens(encoding: Any, name: str) -> Tokens:
    assert isinstance(encoding, TextEncoding)
    found = {segment.name: segment for segment in encoding.segments}[name]
    assert isinstance(found, Tokens)
    return found


def test_the_vocabulary_is_that_of_train_rows(tmp_path: Path) -> None:
    path = text_file(tmp_path / "a.parquet")
    decode = {"kind": "text", "views": {"words": {"kind": "words", "least": 1}}}
    dataset = read(toy.settings(path, decode=decode), tmp_path)
    segment = tokens(dataset.signature.encoding, "words")
    known = Tokenizer.from_str(segment.tokenizer).get_vocab()
    own = {word for word in known if word.startswith("number")}
    assert own == {f"number{row}" for row in dataset.part("train").ids}
    assert segment.size == len(known) == len(own) + 4 + 3 + 2
    assert (known[FILLING_TOKEN], known[UNKNOWN_TOKEN]) == (0, 1)
    lost = dataset.facts["encoding"]["lost"]
    assert "words.unknown" not in lost["train"]
    assert lost["test"]["words.unknown"] > 0.1
    assert (np.asarray(dataset.part("test").inputs) == 1).any(axis=1).all()


def test_cached_rows_are_what_the_encoding_makes_of_raw_values(tmp_path: Path) -> None:
    path = text_file(tmp_path / "a.parquet")
    dataset = read(toy.settings(path, decode={"kind": "text", "views": VIEWS}), tmp_path)
    signature = dataset.signature
    assert (signature.input_dtype, signature.mean, signature.std) == ("int32", (), ())
    encoding = signature.encoding
    assert isinstance(encoding, TextEncoding)
    assert [segment.name for segment in encoding.segments] == list(VIEWS)
    texts = pa.parquet.read_table(path).column("text").to_pylist()
    for part in dataset.parts.values():
        assert np.array_equal(part.inputs, encode(encoding, [texts[row] for row in part.ids]))
    assert type(signature).model_validate_json(signature.model_dump_json()) == signature


def test_a_length_is_given_or_leaves_most_texts_whole(tmp_path: Path) -> None:
    path = text_file(tmp_path / "a.parquet")
    fitted = read(toy.settings(path), tmp_path)
    assert tokens(fitted.signature.encoding, "words").length == 8
    assert all("words.cut" not in lost for lost in fitted.facts["encoding"]["lost"].values())
    decode = {"kind": "text", "views": {"words": {"kind": "words", "length": 6}}}
    given = read(toy.settings(path, decode=decode), tmp_path)
    assert given.signature.input_shape == (6,)
    cut = np.mean([row % 4 > 1 for row in given.part("train").ids])
    assert given.facts["encoding"]["lost"]["train"]["words.cut"] == pytest.approx(cut, abs=1e-6)


def test_a_fit_is_the_same_in_another_process_and_with_threads(tmp_path: Path) -> None:
    path = text_file(tmp_path / "a.parquet", rows=200)
    settings = toy.settings(path, decode={"kind": "text", "views": VIEWS})
    here = read(settings, tmp_path).digest
    code = (
        "import sys; from pathlib import Path; from orchestrator.config.data import ParquetData;"
        "from orchestrator.data.load import load;"
        "print(load(ParquetData.model_validate_json(sys.argv[1]), seed=0, cache=Path(sys.argv[2])).digest)"
    )
    command = [sys.executable, "-c", code, json.dumps(settings.plain()), str(tmp_path / "other")]
    env = {"PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "true", "PYTHONPATH": str(Path.cwd())}
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert found.stdout.strip() == here


def test_what_is_written_like_a_special_token_is_text(tmp_path: Path) -> None:
    texts = [f"{FILLING_TOKEN} {UNKNOWN_TOKEN} row {row}" for row in range(toy.ROWS)]
    path = toy.write(tmp_path / "a.parquet", text=texts, label=toy.labels())
    dataset = read(toy.settings(path, decode={"kind": "text", "views": VIEWS}), tmp_path)
    encoding = dataset.signature.encoding
    assert isinstance(encoding, TextEncoding)
    subwords = TextEncoding(segments=(tokens(encoding, "subwords"),))
    row = encode(subwords, [texts[0]])[0]
    assert row.min() > 1


def test_sound_is_found_by_its_first_bytes_and_fitted(tmp_path: Path) -> None:
    sounds = [wav(np.full(100 + row, row), rate=4000 if row % 5 == 0 else 8000) for row in range(toy.ROWS)]
    path = toy.write(tmp_path / "a.parquet", clip=toy.structs(sounds), label=toy.labels())
    dataset = read(toy.settings(path), tmp_path)
    encoding = dataset.signature.encoding
    assert isinstance(encoding, AudioEncoding)
    assert encoding.rate == 8000
    ids = dataset.part("train").ids
    seconds = sorted((100 + row) / (4000 if row % 5 == 0 else 8000) for row in ids)
    assert encoding.length == round(seconds[int(np.ceil(0.95 * len(ids))) - 1] * 8000)
    assert (dataset.signature.input_dtype, dataset.signature.mean) == ("int16", ())
    part = dataset.part("test")
    assert np.array_equal(part.inputs, encode(encoding, [sounds[row] for row in part.ids]))
    given = read(toy.settings(path, decode={"kind": "audio", "rate": 2000, "seconds": 0.01}), tmp_path)
    assert given.signature.input_shape == (20,)


def test_lists_of_samples_need_their_rate(tmp_path: Path) -> None:
    waves = pa.array([[0.5] * (5 + row % 3) for row in range(toy.ROWS)], pa.list_(pa.float32()))
    path = toy.write(tmp_path / "a.parquet", wave=waves, label=toy.labels())
    with pytest.raises(DataError, match=r"tells its rate.*set data\.decode\.rate"):
        read(toy.settings(path, decode="audio"), tmp_path)
    dataset = read(toy.settings(path, decode={"kind": "audio", "rate": 1000}), tmp_path)
    assert dataset.signature.input_shape == (7,)
    assert set(np.unique(dataset.part("train").inputs)) == {0, 2**14}


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("text", pa.array(["a", None] * 30), "row 1 of a.parquet has no text"),
        ("audio", toy.structs([*[wav([1, 2])] * 59, b"junk"]), "of a.parquet is no PCM WAV file"),
        ("audio", toy.structs([wav([1, 2]), None] * 30), "row 1 of a.parquet has no sound"),
    ],
    ids=["text", "audio", "missing_audio"],
)
def test_a_damaged_value_names_its_row(tmp_path: Path, name: str, values: Any, says: str) -> None:
    path = toy.write(tmp_path / "a.parquet", **{name: values}, label=toy.labels())
    with pytest.raises(DataError) as found:
        read(toy.settings(path), tmp_path)
    assert says in str(found.value)


def table_file(path: Path, **columns: Any) -> Path:
    found = {
        "age": np.arange(float(toy.ROWS)),
        "town": [TOWNS[row % 3] for row in range(toy.ROWS)],
        "floor": np.arange(toy.ROWS) % 4,
        "label": toy.labels(),
    }
    return toy.write(path, **{**found, **columns})


def test_what_nothing_can_be_fitted_to_has_its_row_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.data.parquet.BLOCK_ROWS", 7)
    ids = np.sort(read(toy.settings(text_file(tmp_path / "a.parquet")), tmp_path).part("train").ids)
    for wrong in ids[[1, -1]].tolist():
        sounds = [wav([1, 2])] * toy.ROWS
        numbers: list[float | None] = [None] * toy.ROWS
        sounds[wrong], numbers[wrong] = wav([]), 0.5
        heard = toy.write(tmp_path / "b.parquet", audio=sounds, label=toy.labels())
        seen = toy.write(tmp_path / "c.parquet", x=pa.array(numbers, pa.float64()), label=toy.labels())
        for path, decode in ((heard, "audio"), (seen, {"kind": "features", "categories": ["x"]})):
            with pytest.raises(DataError, match=f"row {wrong} of {path.name} "):
                read(toy.settings(path, decode=decode), tmp_path)


def test_features_may_be_categories(tmp_path: Path) -> None:
    settings = toy.settings(table_file(tmp_path / "a.parquet"), features=["age", "town", "floor"])
    dataset = read(settings, tmp_path)
    encoding = dataset.signature.encoding
    assert isinstance(encoding, TableEncoding)
    assert encoding.columns[1] == Category(name="town", values=("Bonn", "Köln", "Ulm"))
    assert [column.kind for column in encoding.columns] == ["number", "category", "number"]
    assert (dataset.signature.mean[1], dataset.signature.std[1]) == (0, 1)
    part = dataset.part("train")
    assert np.array_equal(part.inputs[:, 1], [3 - 2 * (row % 3 == 1) - (row % 3 == 2) for row in part.ids])
    decode = {"kind": "features", "categories": ["floor"], "vocabulary": 2}
    named = read(toy.settings(tmp_path / "a.parquet", features=settings.features, decode=decode), tmp_path)
    assert isinstance(named.signature.encoding, TableEncoding)
    floors = named.signature.encoding.columns[2]
    assert isinstance(floors, Category)
    assert len(floors.values) == 2


def test_missing_numbers_become_the_train_median(tmp_path: Path) -> None:
    ages = pa.array([None if row % 4 == 1 else float(row) for row in range(toy.ROWS)])
    path = table_file(tmp_path / "a.parquet", age=ages)
    dataset = read(toy.settings(path, features=["age", "floor"]), tmp_path)
    encoding = dataset.signature.encoding
    assert isinstance(encoding, TableEncoding)
    median = float(np.median([row for row in dataset.part("train").ids if row % 4 != 1]))
    floors = encoding.columns[1]
    assert isinstance(floors, Number)
    assert encoding.columns == (
        Number(name="age", fill=median),
        Number(name="floor", fill=floors.fill),
    )
    for part in dataset.parts.values():
        expected = [median if row % 4 == 1 else row for row in part.ids]
        assert np.array_equal(part.inputs[:, 0], np.asarray(expected, np.float32))
    missing = dataset.facts["encoding"]["lost"]["train"]["age.missing"]
    assert missing == pytest.approx(np.mean(dataset.part("train").ids % 4 == 1), abs=1e-6)


def test_infinite_numbers_are_refused_with_their_row(tmp_path: Path) -> None:
    ages = pa.array([None] + [float("inf")] * (toy.ROWS - 1), pa.float64())
    path = table_file(tmp_path / "a.parquet", age=ages)
    with pytest.raises(DataError, match=r"row \d+ of a\.parquet .*'age'"):
        read(toy.settings(path, features=["age", "floor"]), tmp_path)


def test_complete_numbers_stay_without_an_encoding(tmp_path: Path) -> None:
    """Digests of numeric tables and of images are those of earlier releases."""
    plain = read(toy.settings(table_file(tmp_path / "a.parquet"), features=["age", "floor"]), tmp_path)
    assert plain.signature.encoding is None
    assert "encoding" not in plain.facts
    assert "encoding" not in plain.signature.plain()
    assert plain.digest == "271c6dc129696157b8f47e7dd3fd91e831ba9b12a8d12aeebf13dd5a70da83d3"
    named = read(toy.settings(tmp_path / "a.parquet", features=["age", "floor"], decode="features"), tmp_path)
    assert isinstance(named.signature.encoding, TableEncoding)
    assert np.array_equal(named.part("test").inputs, plain.part("test").inputs)


def test_another_data_set_is_encoded_alike(tmp_path: Path) -> None:
    first = read(toy.settings(text_file(tmp_path / "a.parquet")), tmp_path)
    other = toy.write(tmp_path / "b.parquet", text=["unheard words here"] * 30, label=toy.labels(30))
    own = read(toy.settings(other), tmp_path)
    alike = read(toy.settings(other), tmp_path, encoding=first.signature.encoding)
    assert alike.signature.encoding == first.signature.encoding != own.signature.encoding
    assert alike.part("train").inputs[0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_rows_of_one_label_load_when_labels_are_not_looked_at(tmp_path: Path) -> None:
    path = toy.write(tmp_path / "a.parquet", text=["a b"] * 30, label=[150] * 30)
    with pytest.raises(DataError, match=r"all labels of .* are the same"):
        read(toy.settings(path), tmp_path)
    dataset = read(toy.settings(path), tmp_path, labelled=False)
    assert dataset.facts["rows"] == {"train": 18, "validation": 3, "calibration": 1, "contract": 2, "test": 6}
    assert not dataset.part("test").targets.any()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"decode": "texts"}, "texts"),
        ({"decode": {"kind": "text", "views": {}}}, "at least 1"),
        ({"decode": {"kind": "text", "views": {"a b": {"kind": "words"}}}}, "pattern"),
        ({"decode": {"kind": "text", "views": {"a": {"kind": "ngrams", "words": [2, 1]}}}}, "least <= most"),
        ({"decode": "audio", "features": ["x"]}, "not as audio"),
        ({"decode": "text", "transform": "tests.data.toy:halved"}, "transform"),
        ({"elsewhere": {"a": "b"}, "task": "regression"}, "regression"),
        ({"features": ["x", "y", "x"]}, "a column twice"),
        ({"classes": ["cat", "cat"]}, "a name twice"),
    ],
    ids=["kind", "no_views", "name", "range", "features", "transform", "elsewhere", "twice", "classes"],
)
def test_settings_that_cannot_be_meant(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ParquetData.model_validate({"train": "a.parquet", **wrong})


@pytest.mark.parametrize(
    ("columns", "settings", "says"),
    [
        ({"x": [1.0] * 60}, {"decode": "text"}, "no column of a.parquet can be the input"),
        ({"a": ["x"] * 60, "b": ["y"] * 60}, {}, "several columns of a.parquet could be the input: a, b"),
        ({"x": pa.array([None] * 60, pa.float64())}, {}, "no value in column: x"),
        (
            {"x": [1.0] * 60},
            {"decode": {"kind": "features", "categories": ["y"]}},
            "no feature has this name: y",
        ),
        ({"text": ["x"] * 60}, {"transform": "tests.data.toy:halved"}, "transform"),
    ],
    ids=["no_text", "two_texts", "empty_column", "category", "transform"],
)
def test_columns_that_cannot_be_meant(
    tmp_path: Path, columns: dict[str, Any], settings: dict[str, Any], says: str
) -> None:
    path = toy.write(tmp_path / "a.parquet", **columns, label=toy.labels())
    with pytest.raises(DataError, match=says):
        read(toy.settings(path, **settings), tmp_path, allowed={"tests.data.toy:halved"})


@pytest.mark.skipif(
    not (Path(FOLDER) / "clinc150-train.parquet").is_file() or not FOLDER,
    reason="ORCHESTRATOR_TEST_DATA names no folder with clinc150- and spoken-digits-train.parquet",
)
@pytest.mark.parametrize(("name", "kind"), [("clinc150", "text"), ("spoken-digits", "audio")])
def test_real_files_are_found_and_fitted(tmp_path: Path, name: str, kind: str) -> None:
    settings = ParquetData(root=FOLDER, train=f"{name}-train.parquet", limit=1500, small_classes="spread")
    dataset = read(settings, tmp_path)
    assert dataset.signature.encoding is not None
    assert dataset.signature.encoding.kind == kind
    lost = dataset.facts["encoding"]["lost"]["train"]
    assert all(share < 0.1 for name, share in lost.items() if name.endswith("cut"))
