"""Bad input through the command line, one sentence each, before any Ray is started."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.config.encoding import Category, TableEncoding
from orchestrator.errors import ConfigError
from orchestrator.models.build import build
from orchestrator.pipeline import reporting
from orchestrator.pipeline import run as pipeline
from orchestrator.pipeline.context import check_fits
from orchestrator.runtime.rebuild import tensors_of
from orchestrator.store import local
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store
from tests.data import toy
from tests.deployments.toys import DIGITS, SMALL_MLP
from tests.pipeline import toys
from tests.pipeline.command import Answer, command

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing outside of the folder is used, and Ray must not start."""

    def never() -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(pipeline, "connected", never)
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ORCHESTRATOR_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def imported(place: Path, name: str = "digits/mine", seed: int = 0) -> Answer:
    file = toys.weights(place / "mine.safetensors", seed)
    arguments = ("--factory", "mlp", "--kwargs", toys.KWARGS, "--weights", file, "--data", "digits")
    return command("import", name, *arguments, "--json")


def corrupt(path: Path) -> Path:
    images = [toy.png(image) for image in toy.pixels()]
    images[41] = images[41][:60]
    return toy.image_file(path, image=toy.structs(images))


@pytest.mark.parametrize(
    ("make", "more", "parts"),
    [
        (lambda path: path, {}, ("data file not found", "a.parquet")),
        (lambda path: path.mkdir(), {}, ("cannot read as Parquet", "a.parquet")),
        (lambda path: path.write_text("label,x\n"), {}, ("cannot read as Parquet", "a.parquet")),
        (toy.image_file, {"target": "lable"}, ("data.target", "lable", "did you mean 'label'")),
        (toy.image_file, {"input": "img"}, ("data.input", "img", "image, label")),
        (toy.image_file, {"classes": ["a", "b"]}, ("row 2 of a.parquet has a label out of range: 2",)),
        (lambda path: toy.image_file(path, label=toy.labels() + 1), {}, ("out of range", "none is 0")),
        (lambda path: toy.image_file(path, label=np.zeros(60, int)), {}, ("are the same: 0", "two classes")),
        (corrupt, {}, ("row 41 of a.parquet", "cannot be decoded")),
    ],
)
def test_data(place: Path, make: Callable[[Path], Any], more: dict[str, Any], parts: tuple[str, ...]) -> None:
    make(place / "a.parquet")
    file = toys.write(place / "run.yaml", data={"kind": "parquet", "train": "a.parquet", **more})
    found = command("run", file, "--json")
    for part in parts:
        assert part in found.sentence(2)
    assert found.document["kind"] == "DataError"
    assert not Store("store").digests()


@pytest.mark.parametrize(
    ("factory", "parts"),
    [
        ("resnt", ("models.small.model.factory", "no built-in has this name", "mlp, cnn, resnet")),
        ("no.such:net", ("cannot import no.such", "no.such:net", "PYTHONPATH")),
        ("tests.data.toy:net", ("tests.data.toy has no callable net",)),
    ],
)
def test_a_missing_factory(place: Path, factory: str, parts: tuple[str, ...]) -> None:
    file = toys.write(place / "run.yaml", models={"small": {"model": {"factory": factory}}})
    text = command("train", file).sentence(2)
    for part in parts:
        assert part in text


def test_a_missing_loss_and_metric(place: Path) -> None:
    model = {"model": {"factory": "mlp"}, "training": {"loss": {"kind": "custom", "loss": "no.such:loss"}}}
    file = toys.write(place / "run.yaml", models={"small": model})
    assert "cannot import no.such" in command("train", file).sentence(2)
    file = toys.write(place / "run.yaml", metric={"name": "tests.data.toy:score"})
    assert "tests.data.toy has no callable score" in command("train", file).sentence(2)


def test_a_ref_that_is_not_in_the_store(place: Path) -> None:
    file = toys.write(place / "run.yaml", models={"mine": {"ref": "digits/mine"}})
    assert "digits/mine" in command("train", file).sentence(2)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"input_shape": (1, 9, 9)}, ("its shape of a row is [1, 9, 9]", "[1, 8, 8]")),
        ({"outputs": 3, "classes": ()}, ("its number of outputs is 3", "10")),
    ],
)
def test_a_ref_that_was_made_for_other_data(
    place: Path, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    signature, store = DIGITS.model_copy(update=changes), Store("store")
    draft = Draft(model=SMALL_MLP, signature=signature, data="elsewhere", seed=0)
    store.set_ref("digits/mine", store.put_artifact(draft, tensors_of(build(SMALL_MLP, signature, seed=0))))
    file = toys.write(place / "run.yaml", models={"mine": {"ref": "digits/mine"}})
    said = command("train", file).sentence(2)
    assert all(part in said for part in ("not those of the model 'mine'", *parts))


def test_classes_in_another_order_are_refused_and_numbers_without_names_are_not() -> None:
    cats = DIGITS.model_copy(update={"outputs": 2, "classes": ("cat", "dog")})
    dogs = cats.model_copy(update={"classes": ("dog", "cat")})
    with pytest.raises(ConfigError, match=r"label 0 is 'cat': dog\. give data\.classes"):
        check_fits("mine", cats, dogs)
    check_fits("mine", cats, cats.model_copy(update={"classes": ("0", "1")}))


def test_rows_that_are_encoded_otherwise_are_refused() -> None:
    """The same numbers would stand for other words."""
    table = DIGITS.model_copy(
        update={"encoding": TableEncoding(columns=(Category(name="color", values=("green", "red")),))}
    )
    other = table.model_copy(
        update={"encoding": TableEncoding(columns=(Category(name="color", values=("blue", "red")),))}
    )
    check_fits("mine", table, table.model_copy())
    with pytest.raises(ConfigError, match="encoded otherwise than those of the model 'mine'"):
        check_fits("mine", table, other)


def test_an_export_in_no_known_format(place: Path) -> None:
    assert imported(place).code == 0
    assert "the ending of the file names no format: .bin" in command(
        "export", "digits/mine", "a.bin"
    ).sentence(2)
    assert "digits/none" in command("export", "digits/none", "a.pt2").sentence(2)
    assert "does not exist" in command("export", "digits/mine", "no/a.pt2").sentence(2)
    (place / "a.pt2").write_text("kept")
    answer = command("export", "digits/mine", "a.pt2", "--format", "onnx", "--json")
    assert answer.document["format"] == "onnx"
    assert answer.document["bytes"] == (place / "a.pt2").stat().st_size > 1000


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"--factory": "resnt"}, ("no built-in has this name", "resnt")),
        ({"--factory": "cnn"}, ("the weights do not fit the model", "missing")),
        ({"--kwargs": "{widths: [17]}"}, ("other shapes", "[16, 64]", "[17, 64]")),
        ({"--kwargs": "{wdths: [16]}"}, ("model.kwargs.wdths. did you mean 'widths'",)),
        ({"--kwargs": "[1"}, ("the arguments are not valid YAML: [1",)),
        ({"--weights": "none.pt"}, ("there is no file of weights", "none.pt")),
        ({"--data": "none.parquet"}, ("data file not found",)),
        ({"--data": "none.yaml"}, ("cannot read the run file",)),
        ({"name": "a b"}, ("a b",)),
    ],
)
def test_imports(place: Path, changed: dict[str, str], parts: tuple[str, ...]) -> None:
    options = {
        "name": "digits/mine",
        "--factory": "mlp",
        "--kwargs": toys.KWARGS if "--factory" not in changed else "{}",
        "--weights": str(toys.weights(place / "mine.safetensors")),
        "--data": "digits",
        **changed,
    }
    name = options.pop("name")
    text = command("import", name, *(part for option in options.items() for part in option)).sentence(2)
    for part in parts:
        assert part in text


def test_a_foreign_store(place: Path) -> None:
    (place / "store").mkdir()
    (place / "store" / "thesis.txt").write_text("mine")
    file = toys.write(place / "run.yaml")
    assert "the folder is not a store and not empty" in command("run", file).sentence(1)
    assert os.listdir(place / "store") == ["thesis.txt"]
    (place / "store" / "store.json").write_text('{"schema":99}')
    assert "the store has schema 99" in command("run", file).sentence(1)
    assert "the path is no usable folder" in command("run", file, "--store", file).sentence(1)
    assert "ftp:// are not supported" in command("run", file, "--store", "ftp://host/store").sentence(2)


def test_a_locked_store(place: Path) -> None:
    assert imported(place).code == 0
    file = toys.write(place / "run.yaml", models={"mine": {"ref": "digits/mine"}})
    with toys.locked(Store("store"), "run-toy"):
        text = command("train", file).sentence(1)
        assert f"process {os.getpid()} on " in text
        assert "is working on this already" in text
        assert command("train", file, "--set", "name=other").code == 0
    assert command("train", file).code == 0


def test_a_corrupt_artifact(place: Path) -> None:
    digest = imported(place).document["digest"]
    good = imported(place, "digits/other", seed=1).document["digest"]
    file = toys.write(place / "run.yaml", models={"mine": {"ref": "digits/mine"}})
    assert command("models", "--verify").code == 0
    toys.flip(place / "store" / "artifacts" / digest / "weights.safetensors")
    listed = command("models", "--verify", "--json")
    assert "digits/mine (damaged)" in listed.sentence(1)
    assert [row["state"] for row in listed.document] == ["damaged", "ok"]
    text = command("evaluate", file, "--json").sentence(1)
    assert "weights.safetensors of the artifact is damaged" in text
    assert digest in text
    Store("store").verify(good)
    assert imported(place).document["digest"] == digest, "importing it again replaces the damaged copy"
    assert command("models", "--verify").code == 0
    assert command("evaluate", file, "--json").code == 0


def test_an_artifact_that_was_removed(place: Path) -> None:
    digest = imported(place).document["digest"]
    for path in (place / "store" / "artifacts" / digest).iterdir():
        path.unlink()
    listed = command("models", "--json")
    assert "digits/mine (missing)" in listed.sentence(1)
    assert listed.document[0]["state"] == "missing"


def test_a_full_disk_of_the_store(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = imported(place, "digits/kept", seed=1).document["digest"]
    write = local._write_synced

    def full(path: Path, data: bytes) -> None:
        write(path, data[: len(data) // 2])
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(local, "_write_synced", full)
        assert "no space is left on the disk of the store" in imported(place).sentence(1)
    assert Store("store").digests() == [kept]
    Store("store").verify(kept)
    assert imported(place).code == 0


def test_a_full_disk_of_the_cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise FULL

    file = toys.write(place / "run.yaml")
    monkeypatch.setattr(os, "posix_fallocate", full)
    text = command("run", file).sentence(1)
    assert "no space is left for the data cache" in text
    assert "ORCHESTRATOR_CACHE" in text


def test_a_full_disk_for_the_report(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise FULL

    assert imported(place).code == 0
    file = toys.write(place / "run.yaml", models={"mine": {"ref": "digits/mine"}})
    with monkeypatch.context() as patch:
        patch.setattr(reporting, "write_report", full)
        assert "no space is left on the disk" in command("evaluate", file).sentence(1)
    assert not (place / "toy" / "summary.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (place / "store" / "records").rglob("*.json")}
    summary = command("evaluate", file, "--json").document
    assert summary == command("report", "toy", "--json").document
    assert before == {path: path.stat().st_mtime_ns for path in before}, "what was measured is kept"
    assert len(before) == len(list((place / "store" / "records").rglob("*.json")))


@pytest.mark.parametrize(
    ("limits", "parts"),
    [
        (
            {"max_bytes": 9000},
            ("no variant can keep search.max_bytes", "take 11,232 bytes: 9,000. raise it", "prune more"),
        ),
        (
            {"promise": {"max_changed": 0.001}},
            ("promise.max_changed: on 24 contract rows of which none changes", "is 0.1013: 0.001. raise it"),
        ),
        ({"promise": {"max_drop": -0.01}}, ("search.promise.max_drop", "greater than or equal to 0")),
        ({"max_latency_ms": 0}, ("search.max_latency_ms", "greater than 0")),
    ],
)
def test_limits_that_no_variant_can_keep(place: Path, limits: dict[str, Any], parts: tuple[str, ...]) -> None:
    plan = [{"kind": "prune_channels", "amount": {"choice": [0.1, 0.25]}}, {"kind": "int8_weight_only"}]
    search = {"parent": "small", "space": {"plan": plan}, **limits}
    file = toys.write(place / "run.yaml", search=search)
    text = command("search", file).sentence(2)
    for part in parts:
        assert part in text
    assert not Store("store").digests()
