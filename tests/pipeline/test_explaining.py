"""What the evaluation says about an ensemble's members and doubts, and `orchestrator explain`."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.config.data import ParquetData
from orchestrator.config.ensemble import Cascade, Member, Parallel, Spec, WeightedMix
from orchestrator.config.load import validate
from orchestrator.config.run import RunConfig
from orchestrator.data.load import default_cache, load
from orchestrator.ensemble.tree import distinct, replay
from orchestrator.ensemble.uncertainty import detection_auroc
from orchestrator.errors import ConfigError, ExecutionError
from orchestrator.pipeline import evaluation
from orchestrator.pipeline.context import Run, open_run, with_data_root
from orchestrator.pipeline.elsewhere import _doubts, noticed, out_of_scope
from orchestrator.pipeline.explaining import ensemble_figures, examples, occlusions
from orchestrator.pipeline.run import read_config
from orchestrator.pipeline.summary import print_table
from orchestrator.progress import Progress
from orchestrator.search.report import sections
from orchestrator.store.store import Store
from tests.deployments.toys import DIGITS, SMALL_CNN, SMALL_MLP, TABLE, put
from tests.pipeline.command import command
from tests.pipeline.toys import write
from tests.search import fake

ENSEMBLES = {
    "average": {"kind": "parallel", "members": ["small", "other", "cnn"]},
    "mix": {"kind": "weighted_mix", "members": ["small", "cnn"]},
    "cascade": {"kind": "sequential", "stages": ["small", "mix"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with fitted ensembles over untrained models, and the run file that they belong to."""
    made = tmp_path_factory.mktemp("explaining")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATOR_CACHE", str(made / "cache"))
        patch.delenv("ORCHESTRATOR_STORE", raising=False)
        models = {
            name: {"model": {"factory": "mlp"}, "training": {"epochs": 1}}
            for name in ("small", "other", "cnn")
        }
        write(made / "toy.yaml", models=models, ensembles=ENSEMBLES)
        store = Store(made / "store")
        small, other = (put(store, f"mlp{seed}", SMALL_MLP, DIGITS, seed) for seed in (0, 1))
        cnn = put(store, "cnn", SMALL_CNN, DIGITS, 2)
        mix = WeightedMix(members=(small, cnn), weights=(0.75, 0.25))
        trees = {
            "average": Parallel(members=(small, other, cnn)),
            "mix": mix,
            "cascade": Cascade(stages=(small, mix), thresholds=(0.3,)),
        }
        for name, tree in trees.items():
            store.set_ref(f"toy/{name}", store.put_spec(Spec(name=name, tree=tree, signature=DIGITS)))
        yield made


@pytest.fixture
def run(folder: Path) -> Run:
    config = read_config(str(folder / "toy.yaml"))
    return open_run(config, store=str(folder / "store"), progress=Progress(), cluster=lambda: None)


def spec_of(run: Run, name: str) -> Spec:
    return run.store.spec(f"toy/{name}")


def figures_of(run: Run, name: str) -> dict[str, Any]:
    spec = spec_of(run, name)
    outputs = {member: run.outputs(member, "test") for member in members_of(spec)}
    return ensemble_figures(run, spec, replay(spec.tree, outputs, "classification"))


def members_of(spec: Spec) -> list[Member]:
    return distinct(spec.tree)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_figures_are_plain_and_fit_together(run: Run, name: str) -> None:
    found = figures_of(run, name)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found.keys() == {"diversity", "contributions", "uncertainty"}
    names = found["diversity"]["members"]
    assert [member["name"] for member in found["contributions"]["members"]] == names
    for measure in ("disagreement", "kappa", "double_fault", "error_correlation"):
        matrix = found["diversity"][measure]
        assert [len(row) for row in matrix] == [len(names)] * len(names)
        assert matrix[0][1] == matrix[1][0]
    for member, row in enumerate(found["diversity"]["double_fault"]):
        assert row[member] == pytest.approx(1 - found["contributions"]["members"][member]["metric"])
    doubt = found["uncertainty"]
    assert doubt["total"] == pytest.approx(doubt["aleatoric"] + doubt["epistemic"])
    assert 0 <= doubt["brier"] <= 2
    loss = found["diversity"]["loss"]
    assert loss["ambiguity"] == pytest.approx(loss["members"] - loss["ensemble"])


def test_weights_are_those_of_the_answer_and_a_cascade_has_none(run: Run) -> None:
    weights = {
        name: [one["weight"] for one in figures_of(run, name)["contributions"]["members"]]
        for name in ENSEMBLES
    }
    assert weights["average"] == pytest.approx([1 / 3] * 3)
    assert weights["mix"] == [0.75, 0.25]
    assert weights["cascade"] == [None, None]
    assert figures_of(run, "cascade")["diversity"]["members"] == ["mlp0", "weighted_mix(mlp0, cnn)"]


def test_images_are_looked_at_once(run: Run, folder: Path) -> None:
    specs = {name: spec_of(run, name) for name in ENSEMBLES}
    found = occlusions(run, specs)

    def files() -> set[Path]:
        return {path for path in (folder / "store" / "records").rglob("*") if path.is_file()}

    before = files()
    assert occlusions(run, specs) == found
    assert files() == before
    for name, one in found.items():
        told = examples(run, specs[name], one)
        assert [str(row["row"]) for row in told] == list(one)
        for row in told:
            assert np.shape(row["occlusion"]["drop"]) == (7, 7)
            assert row["occlusion"]["probability"] == pytest.approx(row["probability"], abs=1e-5)
            picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(row["image"].split(",")[1]))))
            assert (picture == run.dataset.part("test").inputs[row["row"], 0]).all()


def test_single_models_and_ensembles_are_asked_about_rows_from_elsewhere_once(run: Run, folder: Path) -> None:
    specs = {name: spec_of(run, name) for name in ENSEMBLES}
    trees = {name: spec.tree for name, spec in specs.items()}
    trees |= {member.name: member for member in members_of(specs["average"])}
    found = noticed(run, trees)
    assert found.keys() == trees.keys()
    predictions = folder / "store" / "predictions"
    before = {path for path in predictions.rglob("*") if path.is_file()}
    assert noticed(run, trees) == found
    assert {path for path in predictions.rglob("*") if path.is_file()} == before
    for name, kinds in found.items():
        assert kinds.keys() == {"uniform_noise", "shuffled_pixels"}
        for kind in kinds.values():
            assert kind["rows"] == len(run.dataset.part("test"))
            assert all(0 <= kind[measure] <= 1 for measure in ("confidence", "total"))
            assert (kind["epistemic"] is None) == (name not in specs)
            assert (kind["fpr95"]["epistemic"] is None) == (name not in specs)
            assert all(0 <= kind["fpr95"][measure] <= 1 for measure in ("confidence", "total"))


def test_rows_of_another_source_are_those_of_the_run_file(run: Run) -> None:
    """The test part itself as elsewhere cannot be told from it; rows of another form are refused."""
    own = run.config.data
    tree = spec_of(run, "average").tree
    # Labels of rows from elsewhere are not looked at, so that their parts are cut without them.
    plain = load(own, seed=run.config.seed, cache=default_cache(), labelled=False)
    run = replace(run, dataset=plain)
    same = replace(run, config=run.config.model_copy(update={"elsewhere": own}))
    found = noticed(same, {"average": tree})["average"]
    assert list(found) == ["elsewhere", "uniform_noise", "shuffled_pixels"]
    measures = ("confidence", "total", "epistemic")
    assert [found["elsewhere"][measure] for measure in measures] == pytest.approx([0.5] * 3)
    assert "by" not in found["uniform_noise"]
    assert found["uniform_noise"] == noticed(run, {"average": tree})["average"]["uniform_noise"]
    signature = DIGITS.model_copy(update={"input_shape": (64,), "input_dtype": "float32"})
    rows = replace(same, dataset=replace(run.dataset, signature=signature))
    with pytest.raises(ConfigError, match="not of the data's form"):
        noticed(rows, {"average": tree})


def test_data_from_elsewhere_moves_with_the_data_s_own_folder() -> None:
    data = {"kind": "parquet", "root": "here", "train": "train.parquet"}
    values = {
        "name": "moved",
        "data": data,
        "models": {"net": {"model": {"factory": "mlp"}, "training": {"epochs": 1}}},
    }
    for root, moved in (("here", "there"), ("other", "other")):
        run = validate(RunConfig, values | {"elsewhere": data | {"root": root}}, "toy.yaml")
        found = with_data_root(run, "there")
        assert isinstance(found.data, ParquetData)
        assert isinstance(found.elsewhere, ParquetData)
        assert (found.data.root, found.elsewhere.root) == ("there", moved)


def test_the_measure_that_tells_validation_rows_apart_best_is_named(run: Run) -> None:
    tree = spec_of(run, "average").tree
    other = run.config.data.model_copy(update={"limit": 300})
    run = replace(run, config=run.config.model_copy(update={"elsewhere": other}))
    found = noticed(run, {"average": tree})["average"]["elsewhere"]
    leaves = distinct(tree)
    known, theirs = (
        _doubts(tree, said)
        for said in ({leaf: run.outputs(leaf, "validation") for leaf in leaves}, out_of_scope(run, leaves))
    )
    aurocs = {measure: detection_auroc(known[measure], theirs[measure]) for measure in known}
    assert len(set(aurocs.values())) == 3
    assert aurocs[found["by"]] == max(aurocs.values())


@pytest.mark.parametrize(
    ("policy", "staged", "said"),
    [
        ("cascade", True, "cascade"),
        ("stacking", False, "stack"),
        ("boosting", False, "boosting"),
        (None, False, "stack"),
    ],
)
def test_the_report_calls_an_ensemble_by_its_policy(policy: str | None, staged: bool, said: str) -> None:
    item = {"kind": "sequential"} | ({"policy": policy} if policy else {})
    assert sections._kind(item, staged) == said
    assert sections._kind({"kind": "weighted_mix"}, False) == "weighted mix"


def test_the_summary_has_the_policy(run: Run) -> None:
    for name, policy in (("cascade", "cascade"), ("mix", None)):
        spec = spec_of(run, name)
        prediction = evaluation._test_prediction(run, spec)
        assert evaluation._ensemble(run, spec, prediction).get("policy") == policy


def test_ensembles_are_timed_on_whole_batches(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = len(run.dataset.part("validation")) + 5
    latency = run.config.latency.model_copy(update={"batch": batch})
    run = replace(run, config=run.config.model_copy(update={"latency": latency}))
    seen: list[Any] = []

    def compare(calls: dict[str, Any], *_: object, **__: object) -> dict[str, Any]:
        seen.append(calls["mix"]().outputs)
        return {"": SimpleNamespace(median_ms=1.0)}

    monkeypatch.setattr(evaluation, "compare", compare)
    spec = spec_of(run, "mix")
    evaluation._measure_specs(run, {"mix": spec}, members_of(spec)[0].digest)
    assert len(seen[0]) == batch


def test_a_model_that_cannot_run_here_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "measure_artifacts", lambda *_, **__: [{"error": "no compiler"}])
    with pytest.raises(ExecutionError, match="'small' cannot run on this machine: no compiler"):
        evaluation._model_latencies(run, {"small": Member(name="small", digest="0" * 64)}, "0" * 64)


def test_the_rows_shown_are_those_of_most_contradiction(run: Run) -> None:
    spec = spec_of(run, "average")
    rows = [row["row"] for row in examples(run, spec, {})]
    probabilities = np.stack(
        [np.exp(run.outputs(member, "test").astype(float)) for member in members_of(spec)]
    )
    probabilities /= probabilities.sum(axis=2, keepdims=True)
    mean = probabilities.mean(axis=0)
    epistemic = (probabilities * np.log(probabilities)).sum(axis=2).mean(axis=0) - (mean * np.log(mean)).sum(
        axis=1
    )
    assert rows == np.argsort(-epistemic)[:3].tolist()


def test_the_command_explains_a_row(folder: Path) -> None:
    arguments = ("explain", folder / "toy.yaml", "mix", "5", "--store", folder / "store")
    found = command(*arguments, "--json").document
    assert (found["run"], found["ensemble"], found["part"], found["row"]) == ("toy", "mix", "test", 5)
    assert [member["weight"] for member in found["said"]["members"]] == [0.75, 0.25]
    assert np.shape(found["occlusion"]["drop"]) == (7, 7)
    said = command(*arguments)
    assert said.code == 0
    assert f"mix says {found['answer']}; true is {found['truth']} (test row 5, row {found['id']}" in said.out
    assert "mlp0" in said.out
    assert "probability lost when 2 x 2 pixels are hidden" in said.out


def test_the_command_tells_a_cascades_exit_and_other_parts(folder: Path) -> None:
    arguments = (
        "explain",
        folder / "toy.yaml",
        "cascade",
        "0",
        "--part",
        "contract",
        "--store",
        folder / "store",
    )
    found = command(*arguments, "--json").document
    assert found["stage"] in (0, 1)
    assert [member["asked"] for member in found["said"]["members"]] == [True, found["stage"] == 1]
    assert f"it left the cascade at stage {found['stage'] + 1}" in command(*arguments).out


@pytest.mark.parametrize(
    ("ensemble", "row", "sentence"),
    [
        ("nobody", "0", "toy/nobody"),
        ("mix", "100000", "the test part has no such row: 100000. give 0 to "),
    ],
)
def test_what_is_not_there_is_one_sentence(folder: Path, ensemble: str, row: str, sentence: str) -> None:
    said = command("explain", folder / "toy.yaml", ensemble, row, "--store", folder / "store")
    assert sentence in said.sentence(2)


def test_a_run_without_classes_or_images_has_no_pictures(run: Run) -> None:
    signature = DIGITS.model_copy(update={"input_shape": (64,), "input_dtype": "float32"})
    rows = replace(run, dataset=replace(run.dataset, signature=signature))
    assert occlusions(rows, {"mix": spec_of(run, "mix")}) == {}


def test_the_table_says_what_members_contribute(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    summary = fake.summary()
    figures = figures_of(run, "mix")
    summary["ensembles"]["mix"] |= figures
    print_table(summary, Path("digits"))
    said = capsys.readouterr().out
    part = figures["contributions"]["members"][0]
    line = next(line for line in said.splitlines() if "mlp0" in line)
    assert f"{part['accuracy']['shapley']:.4f}" in line
    assert f"{part['nll']['leave_one_out']:.4f}" in line
    assert "0.7500" in line


def test_a_regression_counts_squared_error_and_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    columns = {name: rng.normal(size=200) for name in ("a", "b", "c", "d", "e", "y", "z")}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    data = {
        "kind": "parquet",
        "root": str(tmp_path),
        "train": "rows.parquet",
        "task": "regression",
        "target": ["y", "z"],
    }
    write(
        tmp_path / "toy.yaml",
        data=data,
        ensembles={"mix": {"kind": "weighted_mix", "members": ["small", "small"]}},
        metric={"name": "rmse"},
    )
    config = read_config(str(tmp_path / "toy.yaml"))
    run = open_run(config, store=str(tmp_path / "store"), progress=Progress(), cluster=lambda: None)
    members = tuple(put(run.store, f"table{seed}", SMALL_MLP, TABLE, seed) for seed in (0, 1))
    tree = WeightedMix(members=members, weights=(0.9, 0.1))
    run.store.set_ref("toy/mix", run.store.put_spec(Spec(name="mix", tree=tree, signature=TABLE)))
    spec = spec_of(run, "mix")
    outputs = {member: run.outputs(member, "test") for member in members}
    found = ensemble_figures(run, spec, replay(tree, outputs, "regression"))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["diversity"].keys() == {"members", "loss", "error_correlation"}
    # Two members with weights w and 1 - w differ from their mean by sqrt(w (1 - w)) of their distance.
    distance = np.abs(outputs[members[0]] - outputs[members[1]]).mean(axis=0)
    assert found["uncertainty"]["spread"] == pytest.approx(0.3 * distance, rel=1e-5)
    assert set(found["contributions"]["members"][0]) == {"name", "weight", "metric", "squared_error"}
    assert found["diversity"]["loss"]["ambiguity"] > 0
    assert occlusions(run, {"mix": spec}) == {}
    (first, *_) = examples(run, spec, {})
    assert "image" not in first
    said = command("explain", tmp_path / "toy.yaml", "mix", str(first["row"]), "--store", tmp_path / "store")
    assert said.code == 0
    assert "table1" in said.out
