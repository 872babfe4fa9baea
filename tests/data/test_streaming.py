"""Streamed train parts: what is found in the files, the sample, who reads what, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.data import streaming
from orchestrator.data.dataset import Dataset
from orchestrator.data.elsewhere import rows_from_elsewhere
from orchestrator.data.encode import encode
from orchestrator.data.load import load, open_cached
from orchestrator.data.stream import Stream, share_of
from orchestrator.data.streaming import read
from orchestrator.errors import DataError
from tests.data import texts
from tests.data.texts import FILES, ROWS, settings, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "texts")


def opened(folder: Path, seed: int = 0, **changed: Any) -> Dataset:
    return load(settings(folder, **changed), seed=seed, cache=folder.parent / "cache")


def streamed(dataset: Dataset) -> Stream:
    assert dataset.stream is not None
    return dataset.stream


def test_the_train_part_is_a_sample_and_the_stream_knows_every_row(folder: Path) -> None:
    found = opened(folder, stream={"sample": 40})
    stream = streamed(found)
    assert (stream.rows, len(stream.files), len(stream.groups)) == (ROWS, FILES, 3 * FILES)
    assert 40 <= len(found.part("train")) <= 43  # and the first row of each class
    assert found.signature.classes == ("c0", "c1", "c2")
    assert found.facts["stream"]["class_counts"] == [67, 67, 66]
    assert {name: len(part) for name, part in found.parts.items() if name != "train"} == dict.fromkeys(
        texts.OTHERS, 30
    )
    words = set(texts.told(found.part("train").inputs))
    assert words != set(texts.told(opened(folder, 1, stream={"sample": 40}).part("train").inputs))
    again = open_cached(found.folder)
    assert again.stream == stream
    assert again.digest == found.digest == opened(folder, stream={"sample": 40}).digest


@pytest.mark.parametrize("block", [1024, 3], ids=["blocks of whole groups", "of parts"])
def test_every_row_is_read_once_by_whoever_reads_and_as_serving_encodes_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(streaming, "BLOCK_ROWS", block)
    found = opened(folder)
    stream, encoding = streamed(found), found.signature.encoding
    assert encoding is not None
    for world in (1, 2, 3, 7):
        shares = [list(share_of(stream, 5, 2, rank, world)) for rank in range(world)]
        sizes = [sum(piece.take for piece in pieces) for pieces in shares]
        assert max(sizes) - min(sizes) <= 1
        parts = [part for pieces in shares for part in read(stream, pieces, found.signature)]
        ids = np.concatenate([part.ids for part in parts])
        assert sorted(ids.tolist()) == list(range(ROWS))
        assert np.concatenate([part.targets for part in parts]).tolist() == (ids % 3).tolist()
        rows = encode(encoding, [f"w{n} {texts.WORDS[n % 3]}" for n in ids])
        assert np.array_equal(np.concatenate([part.inputs for part in parts]), rows)


def test_the_order_is_a_function_of_seed_and_epoch(folder: Path) -> None:
    stream = streamed(opened(folder))
    first = list(share_of(stream, 5, 0, 0, 2))
    assert list(share_of(stream, 5, 0, 0, 2)) == first
    assert list(share_of(stream, 5, 1, 0, 2)) != first
    assert list(share_of(stream, 6, 0, 0, 2)) != first


def test_the_digest_follows_rows_and_their_order_wherever_they_lie(folder: Path) -> None:
    digest = opened(folder).digest
    assert opened(folder, train="train/*.parquet").digest == digest
    assert opened(folder, stream={"shuffle": 30, "readers": 2}).digest == digest
    assert opened(folder, stream={"shuffle": 31}).digest != digest
    moved = folder.parent / "moved"
    shutil.copytree(folder, moved)
    assert opened(moved).digest == digest
    # Neither labels nor the rows of the sample tell of this change.
    changed = texts.table(0, texts.FILE_ROWS).to_pylist()
    sample: dict[str, Any] = {"stream": {"sample": 20}}
    before = opened(moved, **sample)
    row = next(n for n in range(3, 50) if f"w{n}" not in words_of(before))
    changed[row]["text"] = "w0 w0"
    pq.write_table(pa.Table.from_pylist(changed), moved / "train" / "part-0.parquet", row_group_size=20)
    after = opened(moved, **sample)
    assert np.array_equal(after.part("train").inputs, before.part("train").inputs)
    assert after.digest != before.digest


def test_equal_files_under_one_relative_root_are_read_where_they_lie(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clones of a project on one machine have a cache in common."""
    relative = settings(folder).model_copy(update={"root": folder.name})
    other = folder.parent / "clone" / folder.name
    shutil.copytree(folder, other)
    for place in (folder, other):
        monkeypatch.chdir(place.parent)
        found = load(relative, seed=0, cache=folder.parent / "cache")
        assert {Path(file.path).parent for file in streamed(found).files} == {place / "train"}


def words_of(found: Dataset) -> str:
    return str(found.signature.encoding)


def test_a_sample_without_a_class_by_chance_has_its_first_row(folder: Path) -> None:
    rare = pa.table({"text": ["w999 cello"], "label": ["rare"]})
    pq.write_table(rare, folder / "train" / "part-9.parquet")
    found = opened(folder, stream={"sample": 20})
    assert found.facts["class_counts"]["train"][-1] == 1
    assert found.signature.classes[-1] == "rare"


def test_files_may_hold_the_same_in_other_arrow_types(folder: Path) -> None:
    before = opened(folder).part("train")
    last = folder / "train" / "part-3.parquet"
    types = pa.schema([("text", pa.large_string()), ("label", pa.dictionary(pa.int32(), pa.string()))])
    pq.write_table(pq.read_table(last).cast(types), last, row_group_size=texts.GROUP_ROWS)
    after = opened(folder).part("train")
    assert np.array_equal(after.inputs, before.inputs)
    assert np.array_equal(after.targets, before.targets)


def test_rows_from_elsewhere_are_read_without_the_train_files(folder: Path) -> None:
    asked = settings(folder, elsewhere={"other": "test.parquet"})
    found = opened(folder, elsewhere={"other": "test.parquet"})
    (rows,) = rows_from_elsewhere(asked, found.signature).values()
    assert rows.shape == (30, 2)


def test_what_is_refused(folder: Path) -> None:
    def refused(sentence: str, **changed: Any) -> None:
        with pytest.raises(DataError, match=sentence) as caught:
            opened(folder, **changed)
        assert "\n" not in str(caught.value)

    refused(r"no file is data.train: .*/nothing", train="nothing")
    refused(r"data.train holds the file of data.validation: validation.parquet", train="*.parquet")
    refused(
        r"data.train holds the file of data.test: x/../test.parquet",
        train="*st.parquet",
        test="x/../test.parquet",
    )
    refused(r"data.test holds the rows of data.validation: validation.parquet", test="validation.parquet")
    shutil.copy(folder / "train" / "part-2.parquet", folder / "copy.parquet")
    refused(r"data.train holds the file of data.contract: copy.parquet", contract="copy.parquet")
    refused(r"row 2 of train has an unknown label: c2", classes=["c0", "c1"])
    last = folder / "train" / "part-3.parquet"
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), last)
    refused(r"labels of part-3.parquet are of another type than those before: label")
    pq.write_table(pa.table({"text": ["a"], "topic": ["c0"]}), last)
    refused(r"data.target: no column of part-3.parquet has this name: label")
    last.write_bytes(last.read_bytes()[:-20])
    refused(r"cannot read as Parquet .*/part-3.parquet. check that the file is whole.")


def test_a_row_without_text_is_told_at_once_and_by_its_place_in_its_file(folder: Path) -> None:
    rows = texts.table(100, texts.FILE_ROWS)
    column = rows.column(0).to_pylist()
    column[27] = None
    pq.write_table(rows.set_column(0, "text", pa.array(column)), folder / "train" / "part-2.parquet", 20)
    with pytest.raises(DataError, match=r"row 27 of part-2.parquet has no text"):
        opened(folder)
    labels = [None if row == 41 else "c0" for row in range(50)]
    pq.write_table(rows.set_column(1, "label", pa.array(labels)), folder / "train" / "part-2.parquet", 20)
    with pytest.raises(DataError, match=r"row 41 of part-2.parquet has no label"):
        opened(folder)


def test_a_row_that_cannot_be_read_in_training_is_named_by_its_place_in_its_file(folder: Path) -> None:
    rows = texts.table(100, texts.FILE_ROWS)
    values = pa.array([f"w{n}".encode() + b"\xff" * (n == 127) for n in range(100, 150)])
    column = pa.Array.from_buffers(pa.string(), len(values), values.buffers())
    pq.write_table(rows.set_column(0, "text", column), folder / "train" / "part-2.parquet", 20)
    found = opened(folder, stream={"sample": 20})
    with pytest.raises(DataError, match=r"row 27 of part-2.parquet has text that is no UTF-8"):
        list(read(streamed(found), streamed(found).groups, found.signature))


def test_a_label_that_changed_is_named_by_its_place_in_its_file(folder: Path) -> None:
    found = opened(folder)
    rows = texts.table(100, texts.FILE_ROWS)
    labels = ["c9" if row == 27 else label for row, label in enumerate(rows["label"].to_pylist())]
    pq.write_table(rows.set_column(1, "label", pa.array(labels)), folder / "train" / "part-2.parquet", 20)
    with pytest.raises(DataError, match=r"row 27 of part-2.parquet has an unknown label: c9"):
        list(read(streamed(found), streamed(found).groups, found.signature))


def test_a_pattern_is_below_the_root_whatever_its_name_is(folder: Path) -> None:
    odd = folder.parent / "texts[v1]"
    shutil.copytree(folder, odd)
    for train in ("train", "train/*.parquet", "tr*/**/*.parquet", f"{folder}/train/*.parquet"):
        assert len(streamed(opened(odd, train=train)).files) == FILES


def test_a_file_that_changed_since_it_was_looked_through_is_told(folder: Path) -> None:
    found = opened(folder)
    stream = streamed(found)
    pq.write_table(texts.table(0, 10), folder / "train" / "part-0.parquet")
    with pytest.raises(DataError, match=r"a train file changed while it was used: .*part-0.parquet"):
        list(read(stream, stream.groups, found.signature))
