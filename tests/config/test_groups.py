"""Entries that stand for several models: their names and seeds, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.config.groups import nth_seed
from orchestrator.config.load import validate
from orchestrator.config.run import RunConfig
from tests.config.toys import model, refused, run

MUTUAL = {"loss": {"kind": "mutual"}}
SNAPSHOTS = {"epochs": 6, "snapshots": 3}


def of(**entry: Any) -> RunConfig:
    return run(models={"big": model("cnn"), "net": entry})


def test_copies_differ_by_their_seed_alone() -> None:
    config = run("seed=7", models={"big": model("cnn"), "net": model(copies=3, training={"epochs": 2})})
    assert list(config.models) == ["big", "net-1", "net-2", "net-3"]
    copies = [config.models[f"net-{number}"] for number in (1, 2, 3)]
    assert [copy.seed for copy in copies] == [7, nth_seed(7, 2), nth_seed(7, 3)]
    assert len({config.seed_of(copy) for copy in copies}) == 3
    assert len({copy.model_copy(update={"seed": None}).model_dump_json() for copy in copies}) == 1
    own = of(**model(copies=2, seed=5)).models
    assert [own[name].seed for name in ("net-1", "net-2")] == [5, nth_seed(5, 2)]


def test_seeds_of_runs_do_not_meet() -> None:
    """Runs of seeds 0, 1, 2, ... are compared with each other: their members must all differ."""
    seeds = {nth_seed(seed, number) for seed in range(100) for number in range(1, 11)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_models_of_one_training_are_entries_of_their_own() -> None:
    two = [{"factory": "mlp"}, {"factory": "cnn"}]
    for entry in (model(training=SNAPSHOTS), model(copies=3, training=MUTUAL)):
        found = of(**entry).models
        assert [found[f"net-{number}"].number for number in (1, 2, 3)] == [1, 2, 3]
    found = of(together=two, training=MUTUAL).models
    factories = [getattr(found[name].model, "factory", None) for name in ("net-1", "net-2")]
    assert factories == ["mlp", "cnn"]
    assert found["net-1"].together == found["net-2"].together


@pytest.mark.parametrize(
    "entry",
    [
        model(copies=2),
        model(training=SNAPSHOTS),
        model(copies=2, training=MUTUAL),
        {"together": [{"factory": "mlp"}, {"factory": "cnn"}], "training": MUTUAL},
    ],
)
def test_what_was_read_can_be_read_again(entry: dict[str, Any]) -> None:
    config = of(**entry)
    assert validate(RunConfig, config.plain(), "again") == config
    assert validate(RunConfig, config.model_dump(mode="json", exclude_unset=True), "again") == config


def test_a_member_may_name_a_group() -> None:
    inner = {"kind": "weighted_mix", "members": ["net"]}
    config = run(
        models={"big": model("cnn"), "net": model(copies=3)},
        ensembles={"all": {"kind": "parallel", "members": ["big", "net", inner]}},
    )
    members = config.ensembles["all"].plain()["members"]
    assert [member.get("name") for member in members] == ["big", "net-1", "net-2", "net-3", None]
    assert [member["name"] for member in members[-1]["members"]] == ["net-1", "net-2", "net-3"]


def test_a_name_that_is_taken_is_no_group() -> None:
    entry = {"parent": "big", "plan": [{"kind": "bf16"}]}
    config = run(
        models={"big": model("cnn"), "net": model(copies=2)},
        variants={"net": entry},
        ensembles={"x": {"kind": "parallel", "members": ["net", "net-1"]}},
    )
    assert [member["name"] for member in config.ensembles["x"].plain()["members"]] == ["net", "net-1"]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (model(training=MUTUAL), "give 'together' or 'copies'"),
        ({"together": [{"factory": "mlp"}, {"factory": "cnn"}]}, "needs a loss that ties the models"),
        (model(copies=2, training=SNAPSHOTS), "only one of 'copies'"),
        (model(together=[{"factory": "mlp"}] * 2, training=MUTUAL), "give either 'model'"),
        ({"ref": "digits/mine", "copies": 2}, "no 'copies'"),
        (model(copies=0), "models.net.copies"),
        (model(number=1), "here there is one: leave it out"),
        (model(number=2, copies=3), "here there is one: leave it out"),
        ({"ref": "digits/mine", "number": 1}, "here there is one: leave it out"),
        (model(number=4, training=SNAPSHOTS), "'number' is at most 3"),
        (model(training={"epochs": 5, "snapshots": 2}), "5 epochs cannot be cut into 2 equal cycles"),
        (model(training={**SNAPSHOTS, "schedule": "constant"}), "comes to rest"),
        (model(training={**SNAPSHOTS, "patience": 2}), "exclude each other"),
        (model(training={**SNAPSHOTS, "sparsify": {"amount": 0.5}}), "it unfolds over all cycles together"),
        (model(training={**SNAPSHOTS, "lookahead": {}}), "it unfolds over all cycles together"),
        (model(training={"sample": {"replacement": False}}), "lower 'share'"),
    ],
)
def test_refused(entry: dict[str, Any], text: str) -> None:
    assert text in refused(models={"big": model("cnn"), "net": entry})


def test_names_must_be_free() -> None:
    models = {"big": model("cnn"), "net": model(copies=2), "net-2": model()}
    assert "two models would be named 'net-2'" in refused(models=models)


def test_a_step_makes_one_model_of_one() -> None:
    for training in (SNAPSHOTS, {"epochs": 1, **MUTUAL}):
        plan = [{"kind": "recover", "training": training}]
        text = refused(variants={"thin": {"parent": "big", "plan": plan}})
        assert "are for models of a run file" in text


def test_a_training_search_takes_one_model() -> None:
    search = {"model": "net-1", "space": {"training": {"lr": {"choice": [0.1, 0.2]}}}}
    models = {"big": model("cnn"), "net": model(training=SNAPSHOTS)}
    assert "one of several models of a training" in refused(models=models, training_search=search)
