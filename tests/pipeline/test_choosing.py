"""`orchestrator choose` over models of the store: no training, no Ray."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from orchestrator.config.data import EmbeddedData
from orchestrator.config.measure import Metric
from orchestrator.config.model import Mlp, MlpKwargs
from orchestrator.data.dataset import Dataset
from orchestrator.data.load import load
from orchestrator.ensemble.tree import distinct, predict
from orchestrator.models.build import build
from orchestrator.pipeline.choosing import rows_to_shift
from orchestrator.runtime.execute import load as load_executable
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store
from tests.pipeline.command import Answer, command
from tests.pipeline.toys import write

WIDTHS = {"narrow": (8,), "first": (32,), "second": (32,), "wide": (512, 512)}
"""The last is by far the slowest."""
KEPT = ("schema", "goal", "points", "recommended", "nearest", "reason", "honest", "spec", "notes", "models")


@dataclass(frozen=True)
class Place:
    """A store with four trained models, and a run file over them."""

    store: Store
    file: Path
    dataset: Dataset

    def choose(self, *more: str | Path) -> Answer:
        return command("choose", self.file, "--store", self.store.root, *more)

    def document(self, *more: str) -> dict[str, Any]:
        answer = self.choose(*more, "--json")
        assert answer.code == 0, answer.err
        found: dict[str, Any] = answer.document
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("choosing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATOR_CACHE", str(folder / "cache"))
        patch.delenv("ORCHESTRATOR_STORE", raising=False)
        dataset = load(EmbeddedData(), seed=0, cache=folder / "cache")
        store = Store(folder / "store")
        for seed, (name, widths) in enumerate(WIDTHS.items()):
            store.set_ref(f"given/{name}", trained(store, dataset, widths, seed))
        models = {name: {"ref": f"given/{name}"} for name in WIDTHS}
        yield Place(store, write(folder / "run.yaml", data={"kind": "embedded"}, models=models), dataset)


def trained(store: Store, dataset: Dataset, widths: tuple[int, ...], seed: int) -> str:
    """An artifact that some steps over all rows have taught the digits, not perfectly."""
    model = Mlp(kwargs=MlpKwargs(widths=widths))
    module = build(model, dataset.signature, seed=seed)
    part = dataset.part("train")
    rows, targets = torch.from_numpy(part.inputs.copy()), torch.from_numpy(part.targets.copy())
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(15):
        optimizer.zero_grad()
        functional.cross_entropy(module(rows), targets).backward()
        optimizer.step()
    draft = Draft(model=model, signature=dataset.signature, data="", seed=seed, what={"imported": True})
    return store.put_artifact(draft, module.eval().state_dict())


@pytest.mark.slow
def test_one_document_with_front_baselines_and_spec(place: Place) -> None:
    found = place.document("--max-drop", "0.02")
    assert found.keys() >= set(KEPT)
    assert found["goal"] == {"max_drop": 0.02}
    assert json.loads((place.store.root.parent / "toy" / "choose.json").read_text()) == found
    points = found["points"]
    chosen = points[found["recommended"]]
    assert chosen["drop"]["value"] <= 0.02
    assert {"best single model", "uncompressed ensemble"} <= {
        label for point in points for label in point["baseline"].split(", ")
    }
    (reference,) = [point for point in points if point["reference"]]
    assert reference["drop"] == {"value": 0.0, "ci": [0.0, 0.0]}
    assert any(note.startswith("merged student") for note in found["notes"])
    for point in points:
        low, high = point["metric"]["ci"]
        assert low <= point["metric"]["value"] <= high
        assert point["latency_ms"] <= point["p99_ms"]
        assert 0 < point["robustness"] < point["test"]["value"] + 0.05
        assert point["bytes"] == sum(
            place.store.artifact_bytes(found["models"][member.partition(" ")[0]])
            for member in point["members"]
        )


def test_the_spec_gives_the_planners_predictions(place: Place) -> None:
    """Run whole, row for row as a server would, against the figures that were told."""
    found = place.document("--name", "best")
    chosen = found["points"][found["recommended"]]
    spec = place.store.spec("toy/best")
    assert (spec.name, spec.batch, spec.tree.kind) == ("best", chosen["batch"], chosen["kind"])
    assert place.store.ref("toy/best") == found["spec"]["digest"]
    members = {
        member: load_executable(place.store, member.digest, member.execution)
        for member in distinct(spec.tree)
    }
    test = place.dataset.part("test")
    answer = predict(spec.tree, members, test.inputs, "classification")
    assert float((answer.outputs.argmax(1) == test.targets).mean()) == pytest.approx(chosen["test"]["value"])
    validation = place.dataset.part("validation")
    answer = predict(spec.tree, members, validation.inputs, "classification")
    value = float((answer.outputs.argmax(1) == validation.targets).mean())
    assert value == pytest.approx(chosen["metric"]["value"], abs=0.03)


def test_a_second_time_runs_no_model(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    first = place.document("--max-drop", "0.02")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded for predictions that are cached")

    monkeypatch.setattr("orchestrator.runtime.outputs.load", refuse)
    assert place.document("--max-drop", "0.02") == first


def test_one_model_can_be_the_choice_and_is_a_spec(place: Place) -> None:
    found = place.document("--single-model", "--name", "alone")
    chosen = found["points"][found["recommended"]]
    assert chosen["kind"] == "member"
    assert place.store.spec("toy/alone").tree.kind == "member"
    best = max(point["metric"]["value"] for point in found["points"] if point["kind"] == "member")
    assert chosen["metric"]["value"] == best


def test_a_goal_that_nobody_reaches_says_what_was_nearest(place: Place) -> None:
    answer = place.choose("--max-bytes", "10", "--name", "never", "--json")
    assert answer.code == 1
    found = answer.document
    assert found["recommended"] is None
    assert found["spec"] is None
    assert found["reason"].startswith(
        "none qualifies: the nearest is narrow (eager), which misses max_bytes by"
    )
    assert "toy/never" not in place.store.refs("toy/")


def test_robustness_can_be_a_bound(place: Place) -> None:
    found = place.document("--min-robustness", "0.2")
    assert found["points"][found["recommended"]]["robustness"] >= 0.2
    assert place.choose("--min-robustness", "0.99", "--json").document["recommended"] is None


@pytest.mark.slow
def test_every_batch_is_a_candidate(place: Place) -> None:
    found = place.document("--batch", "1", "--batch", "64", "--max-drop", "0.05")
    assert {point["batch"] for point in found["points"]} == {1, 64}
    # The fastest a row: with many rows in a call a row costs less.
    assert found["points"][found["recommended"]]["batch"] == 64


def test_the_table_is_for_people(place: Place) -> None:
    answer = place.choose("--max-drop", "0.02")
    assert answer.code == 0
    for said in ("uncompressed ensemble", "best single model", "chosen", "orchestrator serve toy/choice"):
        assert said in answer.out
    assert "measured whole in one process" in answer.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--name", "narrow"), "the name is taken in this run: narrow"),
        (("--name", "a/b"), "this cannot be the name of an ensemble: a/b"),
        (("--reference", "teacher"), "the reference is no model of the run: teacher"),
        (("--p99-ms", "-1"), "p99_ms"),
        (("--batch", "0"), "batches must be at least 1"),
        (("--core-hour", "0"), "core_hour"),
    ],
)
def test_mistakes_are_one_sentence(place: Place, arguments: tuple[str, ...], said: str) -> None:
    assert said in place.choose(*arguments).sentence(2)


def test_a_limit_that_no_variant_can_keep_is_told_before_anything_is_trained(place: Place) -> None:
    """As by the other commands; the model that a file of its own would train stays untrained."""
    file = write(
        place.file.parent / "limited.yaml",
        name="limited",
        data={"kind": "embedded"},
        search={"max_bytes": 10, "parent": "small"},
    )
    answer = command("choose", file, "--store", place.store.root)
    assert "no variant can keep search.max_bytes" in answer.sentence(2)
    assert not place.store.refs("limited/")


def test_damaged_shifted_predictions_are_one_sentence(place: Place) -> None:
    place.document()
    digest = place.store.ref("given/narrow")
    (kept, *_) = sorted((place.store.root / "predictions" / digest).glob("contrast1-*.parquet"))
    before = kept.read_bytes()
    kept.write_bytes(before[: len(before) // 2])
    try:
        assert "stored predictions are damaged" in place.choose().sentence(1)
    finally:
        kept.write_bytes(before)


@pytest.mark.parametrize(("first", "rows"), [(3, 512), (700, 1024), (2_900, 3_000)])
def test_as_many_rows_are_shifted_as_the_metric_needs(first: int, rows: int) -> None:
    targets = np.zeros(3_000, np.int64)
    targets[first] = 1
    assert rows_to_shift(Metric(name="auroc"), np.zeros((3_000, 2)), targets, ()) == rows
    assert rows_to_shift(Metric(), np.zeros((3_000, 2)), targets, ()) == 512
    assert rows_to_shift(Metric(), np.zeros((9, 2)), targets[:9], ()) == 9
