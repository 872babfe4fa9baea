"""The section `training_search`: what is laid upon the model, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.config.free import complete, filled, grid, named, parameters
from orchestrator.config.run import ModelEntry
from orchestrator.config.tuning import TrainingSearch, TrainingSpace, merged, tuned
from tests.config.toys import DISTILLED, model, refused, run, student

FACTORIES = {
    "choice": [
        {"factory": "cnn", "kwargs": {"channels": {"choice": [[8, 16], [16, 32]]}}},
        {"factory": "resnet", "kwargs": {"depth": {"range": [8, 26], "step": 6}, "width": 8}},
    ]
}
RATES = {"lr": {"range": [0.01, 0.3], "log": True}, "augment": {"flip": {"choice": [True, False]}}}


def space(**values: Any) -> TrainingSpace:
    return TrainingSpace.model_validate(values)


def settings(**values: Any) -> TrainingSearch:
    return TrainingSearch.model_validate({"space": {"training": RATES}, **values})


def test_values_inside_a_model_are_named_after_its_factory() -> None:
    found = space(model=FACTORIES, training=RATES)
    assert dict(named(found)) == {
        "model": "model",
        "model.cnn.kwargs.channels": "channels",
        "training.lr": "lr",
        "training.augment.flip": "flip",
        "model.resnet.kwargs.depth": "depth",
    }
    assert parameters(found)["model"].labels == ("cnn", "resnet")
    config = complete(found, {"model": "resnet", "training.lr": 0.05})
    assert filled(found, config) == {
        "model": {"factory": "resnet", "kwargs": {"depth": 8, "width": 8}},
        "training": {"lr": 0.05, "augment": {"flip": True}},
    }
    assert grid(found) is None
    finite = space(model=FACTORIES)
    assert [list(config.values()) for config in grid(finite) or ()] == [
        ["cnn", "[8, 16]"],
        ["cnn", "[16, 32]"],
        *(["resnet", depth] for depth in (8, 14, 20, 26)),
    ]


def test_what_is_chosen_is_laid_upon_the_model() -> None:
    base = {"factory": "cnn", "kwargs": {"channels": [8, 16], "hidden": 32}}
    assert merged(base, {"kwargs": {"hidden": 64}}) == {
        "factory": "cnn",
        "kwargs": {"channels": [8, 16], "hidden": 64},
    }
    assert merged(base, {"factory": "cnn", "kwargs": {"hidden": 64}})["kwargs"]["channels"] == [8, 16]
    assert merged(base, {"factory": "mlp"}) == {"factory": "mlp"}, "other keys mean other things"
    assert merged({"a": None}, {"a": {"b": 1}}) == {"a": {"b": 1}}


def test_a_trial_has_its_own_resources_and_a_teacher_only_if_its_loss_has_one() -> None:
    entry = ModelEntry.model_validate(
        {**model("mlp", training={"loss": DISTILLED}), "teacher": "big", "resources": {"workers": 2}}
    ).plain()
    losses = {"choice": [{"kind": "distillation"}, {"kind": "cross_entropy"}]}
    search = settings(space={"training": {"loss": losses}}, cpus=2)
    taught, alone = (
        ModelEntry.model_validate(tuned(entry, search, {"training.loss": label}))
        for label in parameters(search.space)["training.loss"].labels or ()
    )
    assert (taught.teacher, alone.teacher) == ("big", None)
    assert (taught.resources.cpus, taught.resources.workers) == (2, 1)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"model": "none", "space": {"training": RATES}}, "no model is named 'none'; models: big, small"),
        ({"model": "big"}, "training_search.space"),
        ({"model": "big", "space": {"training": {"lr": 0.1}}}, "nothing is free"),
        (
            {"model": "big", "space": {"training": {"lr": {"choice": [0.1, -1]}}}},
            "training_search.space: training.lr: Input should be greater than 0",
        ),
        ({"model": "big", "space": {"training": {"lrr": {"choice": [1]}}}}, "unknown key 'training.lrr'"),
        (
            {
                "model": "big",
                "space": {"model": {"factory": "resnet", "kwargs": {"depth": {"range": [8, 9]}}}},
            },
            "depth must be 6n + 2",
        ),
        ({"model": "big", "space": {"training": RATES}, "sampler": "grid"}, "give each range a step"),
        ({"model": "big", "space": {"training": RATES}, "trails": 3}, "did you mean 'trials'"),
        (
            {"model": "big", "space": {"training": {"transfer": {"choice": [None, {"kind": "embedded"}]}}}},
            "a transfer set needs",
        ),
        (
            {"model": "big", "space": {"training": {"snapshots": {"choice": [None, 2]}}}},
            "training_search.space: snapshots make several models of one",
        ),
    ],
)
def test_what_is_refused(section: dict[str, Any], said: str) -> None:
    assert said in refused(training_search=section)


def test_names_and_sources() -> None:
    section = {"model": "big", "space": {"training": RATES}}
    taken = {"big": model("cnn"), "big-best": model("mlp")}
    assert "'big-best' is that of the training search's result" in refused(
        models=taken, training_search=section
    )
    imported = {"big": {"ref": "x/y"}, "small": model("mlp")}
    assert "'big' is not trained here" in refused(models=imported, training_search=section)
    taught = {"big": model("cnn"), "small": student("big")}
    assert run(models=taught, training_search={**section, "model": "small"}).training_search


def test_a_factory_of_ones_own_in_the_space_may_run() -> None:
    factories = {"choice": [{"factory": "cnn"}, {"factory": "my.module:net"}]}
    assert "my.module:net" in run(training_search={"model": "big", "space": {"model": factories}}).allowed()


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"loss": {"choice": ["cross_entropy", "mse"]}}, "training.loss"),
        ({"loss": "mse", "lr": {"choice": [0.1]}}, "training.loss"),
        ({"choice": ["abc", [1]]}, "training"),
    ],
)
def test_a_training_that_is_no_mapping_is_told(training: Any, said: str) -> None:
    section = {"model": "big", "space": {"training": training}}
    assert f"training_search.space: {said}: " in refused(training_search=section)
