"""The example that needs a cluster: its run files, its network and its data."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from orchestrator.config.data import ParquetData
from orchestrator.config.encoding import TextEncoding, Tokens
from orchestrator.config.load import load_run
from orchestrator.config.model import ImportedModel
from orchestrator.config.run import RunConfig
from orchestrator.config.signature import Signature
from orchestrator.data.load import load

FOLDER = Path(__file__).parents[2] / "examples" / "large"


def run_file(name: str, folder: Path) -> RunConfig:
    return load_run(FOLDER / name, [f"data.root={folder}"])


def written(folder: Path, *options: str) -> Path:
    subprocess.run([sys.executable, FOLDER / "write_texts.py", folder, *options], check=True)
    return folder


@pytest.mark.parametrize("name", ["tiny.yaml", "large.yaml"])
def test_both_forms_stream_shard_compress_and_combine(name: str, tmp_path: Path) -> None:
    run = run_file(name, tmp_path)
    assert isinstance(run.data, ParquetData)
    assert run.data.stream is not None
    assert run.allowed() == {"encoder:encoder"}
    assert {entry.resources.strategy for entry in run.models.values()} == {"fsdp"}
    assert [step.kind for entry in run.variants.values() for step in entry.plan] == [
        "prune_heads",
        "recover",
        "int8_dynamic",
    ]
    assert set(run.ensembles) == {"average", "small"}


def test_the_large_form_has_a_hundred_million_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(FOLDER))
    model = run_file("large.yaml", tmp_path).models["encoder-1"].model
    assert isinstance(model, ImportedModel)
    view = Tokens(name="subwords", length=128, size=30_000, tokenizer="{}")
    signature = Signature(
        task="classification",
        input_shape=(128,),
        input_dtype="int32",
        outputs=20,
        mean=(),
        std=(),
        encoding=TextEncoding(segments=(view,)),
    )
    with torch.device("meta"):
        network = importlib.import_module("encoder").encoder(signature, **model.kwargs)
    assert 105e6 < sum(parameter.numel() for parameter in network.parameters()) < 115e6


def test_made_up_texts_are_repeatable_and_many_files(tmp_path: Path) -> None:
    folder = written(tmp_path / "one", "--files", "3", "--rows", "200")
    again = written(tmp_path / "two", "--files", "3", "--rows", "200")
    found = load(run_file("tiny.yaml", folder).data, seed=0, cache=tmp_path / "cache")
    assert found.digest == load(run_file("tiny.yaml", again).data, seed=0, cache=tmp_path / "cache").digest
    assert found.stream is not None
    assert (len(found.stream.files), found.stream.rows) == (3, 600)
    assert len(found.signature.classes) == 20
    assert len(found.part("test")) == 200


def test_files_of_clinc150_are_cut_into_many(tmp_path: Path) -> None:
    source = tmp_path / "clinc150"
    source.mkdir()
    for part, rows in (("train", 300), ("validation", 90), ("test", 60)):
        numbers = range(rows)
        columns = {"text": [f"{part} {n}" for n in numbers], "intent": [f"i{n % 3}" for n in numbers]}
        pq.write_table(pa.table({**columns, "label": list(numbers)}), source / f"clinc150-{part}.parquet")
    folder = written(tmp_path / "many", "--files", "7", "--clinc150", str(source))
    found = load(run_file("tiny.yaml", folder).data, seed=0, cache=tmp_path / "cache")
    assert found.stream is not None
    assert (len(found.stream.files), found.stream.rows) == (7, 300)
    assert found.facts["rows"] == {
        "train": 300,
        "validation": 30,
        "calibration": 30,
        "contract": 30,
        "test": 60,
    }
    texts = {text for file in found.stream.files for text in pq.read_table(file.path)["text"].to_pylist()}
    assert texts == {f"train {n}" for n in range(300)}
