"""What one setting demands of another."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.config.ensemble import Cascade
from orchestrator.config.guarantee import Guarantee
from tests.config.toys import DISTILLED, model, pair, refused, run, student


def test_teachers() -> None:
    assert run(models={"big": model(), "s": student("big"), "t": student("s")}, search=None)
    circle = {"a": student("b"), "b": student("c"), "c": student("a")}
    assert "the teachers form a circle" in refused(models=circle, search=None)
    assert "models.a.teacher: no other model is named 'a'" in refused(models={"a": student("a")}, search=None)
    assert "models.a.teacher: no other model is named 'z'" in refused(models={"a": student("z")}, search=None)


@pytest.mark.parametrize(
    "entry",
    [
        student(None),
        model(teacher="big"),
        model(training={"loss": {"kind": "mse"}}, teacher="big"),
    ],
)
def test_a_teacher_and_its_loss_go_together(entry: dict[str, Any]) -> None:
    assert "models.s: a distillation loss and 'teacher' go together" in refused(
        models={"big": model(), "s": entry}
    )


def test_a_model_has_one_source() -> None:
    assert "either 'model'" in refused(models={"big": {}})
    assert "either 'model'" in refused(models={"big": model(ref="digits/mine")})
    assert run(models={"big": {"ref": "digits/mine"}}).models["big"].ref == "digits/mine"
    for key, more in (("training", {"epochs": 3}), ("resources", {"cpus": 2})):
        said = refused(models={"big": {"ref": "digits/mine", key: more}})
        assert f"a model from the store is not trained here, so it has no '{key}'" in said


def test_names_of_the_front_are_reserved() -> None:
    assert "model name 'chosen' is reserved" in refused(models={"chosen": model()}, search=None)


def test_the_searched_model_exists() -> None:
    assert "search.parent: no model is named 'huge'; models: big, small" in refused("search.parent=huge")


@pytest.mark.parametrize("key", ["max_class_drop", "max_changed"])
def test_a_promise_about_classes_needs_them(key: str) -> None:
    assert run(f"search.promise.{key}=0.05")
    said = refused("data.name=gapminder", "data.task=regression", f"search.promise.{key}=0.05")
    assert f"search.promise.{key} needs classes, which task regression has not" in said
    small = f"variants={{v: {{parent: big, plan: [{{kind: bf16}}], promise: {{{key}: 0.05}}}}}}"
    said = refused("data.name=gapminder", "data.task=regression", small)
    assert f"variants.v.promise.{key} needs classes" in said


def variant(parent: str) -> dict[str, Any]:
    return {"parent": parent, "plan": [{"kind": "recover"}]}


def test_sets_belong_to_the_top_of_an_ensemble_and_to_its_task() -> None:
    asked = {"prediction_sets": {"coverage": 0.8}}
    found = run(ensembles={"x": pair("big", "small") | asked}).ensembles["x"]
    assert found.prediction_sets is not None
    assert found.prediction_sets.coverage == 0.8
    inner = {"kind": "parallel", "members": ["big", pair("big", "small") | asked]}
    assert "give them at its top" in refused(ensembles={"x": inner})
    given = {"prediction_sets": {"threshold": 0.5}}
    assert "leave out its fitted number" in refused(ensembles={"x": pair("big", "small") | given})
    wrong = {"intervals": {"coverage": 0.8}}
    assert "use prediction_sets" in refused(ensembles={"x": pair("big", "small") | wrong})


def test_a_reject_belongs_to_the_top_of_a_classifier_s_ensemble() -> None:
    asked = {"reject": {"by": "entropy", "keep": 0.9}}
    found = run(ensembles={"x": pair("big", "small") | asked}).ensembles["x"]
    assert found.reject is not None
    assert (found.reject.by, found.reject.fitted) == ("entropy", False)
    inner = {"kind": "parallel", "members": ["big", pair("big", "small") | asked]}
    assert "reject belongs to the whole ensemble" in refused(ensembles={"x": inner})
    recall = {"reject": {"recall": 0.9}}
    assert "name 'elsewhere'" in refused(ensembles={"x": pair("big", "small") | recall})


def pupil(ensemble: str, parent: str = "big") -> dict[str, Any]:
    step = {"kind": "distill", "model": {"factory": "mlp"}, "ensemble": ensemble}
    return {"parent": parent, "plan": [step]}


def test_students_of_ensembles_come_after_them_and_may_be_members_of_others() -> None:
    variants = {"s": pupil("x"), "thin": variant("big"), "t": variant("s"), "u": pupil("elsewhere/mix")}
    ensembles = {"x": pair("big", "thin"), "y": {"kind": "sequential", "stages": ["s", "x"]}}
    assert run(variants=variants, ensembles=ensembles).taught() == ("s", "t")
    circle = {"x": pair("big", "t")}
    said = refused(variants={"s": pupil("x"), "t": variant("s")}, ensembles=circle)
    assert "it learns from an ensemble that it is itself a part of" in said


def test_variants_name_what_is_above_them() -> None:
    two = {"a": variant("big"), "b": variant("a")}
    found = run(variants=two, ensembles={"x": pair("a", "b")})
    assert list(found.variants) == ["a", "b"]
    backwards = {"b": variant("a"), "a": variant("big")}
    assert "variants.b.parent: 'a' is none of big, small" in refused(variants=backwards)
    assert "variants.a.parent: 'chosen' is none of" in refused(variants={"a": variant("chosen")})


BF16, INT8 = {"kind": "bf16"}, {"kind": "int8_static"}


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ({"a": [BF16, {"kind": "recover"}]}, "variants.a.plan: 'recover' cannot follow 'bf16'"),
        (
            {"a": [BF16], "b": [INT8]},
            "variants.b.plan: 'int8_static' cannot follow 'bf16' in bf16, int8_static",
        ),
        (
            {"a": [INT8]},
            "variants.a.execution: int8_static does not run eager: use lowered or aoti or openvino",
        ),
    ],
)
def test_plans_of_variants_are_checked_with_the_file(variants: dict[str, Any], said: str) -> None:
    parents = ["big", *variants]
    entries = {
        name: {"parent": parent, "plan": plan, "execution": "eager"}
        for (name, plan), parent in zip(variants.items(), parents, strict=False)
    }
    assert said in refused(variants=entries)


def test_a_student_of_a_quantized_parent_is_a_fresh_model() -> None:
    student = [{"kind": "distill", "model": {"factory": "mlp"}}, INT8]
    entries = {"a": {"parent": "big", "plan": [BF16]}, "b": {"parent": "a", "plan": student}}
    assert run(variants=entries)


@pytest.mark.parametrize("name", ["big", "chosen"])
def test_variants_have_names_of_their_own(name: str) -> None:
    assert f"variants.{name}: the name is already taken" in refused(variants={name: variant("big")})


def test_ensembles_name_what_there_is() -> None:
    found = run(ensembles={"x": pair("big", "chosen"), "y": pair("x", "fastest", kind="sequential")})
    assert list(found.ensembles) == ["x", "y"]
    text = refused(ensembles={"x": pair("big", "huge")})
    assert "ensembles.x: no member is named 'huge'; known: big, small, chosen, fastest" in text
    assert "no member is named 'chosen'; known: big, small" in refused(
        ensembles={"x": pair("big", "chosen")}, search=None
    )


def test_an_ensemble_may_use_only_those_before_it() -> None:
    later = {"y": pair("x", "big"), "x": pair("big", "small")}
    assert "ensembles.y: no member is named 'x'" in refused(ensembles=later)
    assert run(ensembles=dict(reversed(later.items())))
    assert "ensembles.x: no member is named 'x'" in refused(ensembles={"x": pair("x", "big")})
    assert "ensembles.big: the name is already taken" in refused(ensembles={"big": pair("big", "small")})


@pytest.mark.parametrize("more", [{"temperature": 2}, {"execution": "lowered"}])
def test_what_a_leaf_alone_can_have_is_no_ensemble_s(more: dict[str, Any]) -> None:
    def trees(name: str) -> dict[str, Any]:
        members = ["big", {"kind": "member", "name": name, "required": True, **more}]
        return {"x": pair("big", "small"), "y": {"kind": "parallel", "members": members}}

    assert run(ensembles=trees("small"))
    said = f"ensembles.y: member x is an ensemble, which has no {next(iter(more))}: leave it out"
    assert said in refused(ensembles=trees("x"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"kind": "weighted_mix", "members": ["big", "small"], "weights": [1.0]},
            "need as many weights, got 1",
        ),
        ({"kind": "weighted_mix", "members": ["big", "small"], "weights": [0.7, 0.7]}, "sum to 1"),
        ({"kind": "weighted_mix", "members": ["big", "small"], "weights": [1.5, -0.5]}, "must be >= 0"),
        ({"kind": "sequential", "stages": ["big", "small"], "thresholds": []}, "2 stages need 1 thresholds"),
        ({"kind": "parallel", "members": ["big"]}, "at least 2"),
    ],
)
def test_weights_and_thresholds_fit_the_members(more: dict[str, Any], said: str) -> None:
    assert said in refused(ensembles={"x": more})


BOOSTING = {"kind": "sequential", "policy": "boosting", "base": "small"}
TOGETHER = {
    "big": model("cnn"),
    "pair": {**model("mlp"), "copies": 2, "training": {"loss": {"kind": "mutual"}}},
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"ensembles": {"x": BOOSTING | {"base": "huge"}}},
            "base: no model is named 'huge'; models: big, small",
        ),
        (
            {
                "ensembles": {"x": BOOSTING},
                "models": {"big": model("cnn"), "small": student("big")},
            },
            "base: 'small' must be trained here and from labels",
        ),
        (
            {"ensembles": {"x": BOOSTING | {"base": "pair"}}, "models": TOGETHER},
            "base: no model is named 'pair'; models: big, pair-1, pair-2",
        ),
        (
            {"ensembles": {"x": BOOSTING | {"base": "pair-1"}}, "models": TOGETHER},
            "base: 'pair-1' is one of several models of a training",
        ),
        (
            {"ensembles": {"x": BOOSTING | {"members": [{"name": "small"}]}}},
            "ensembles.x: members, factors, train_losses and survivors are filled in by the run",
        ),
        (
            {"ensembles": {"x": BOOSTING | {"members": ["big", "small"]}}},
            "ensembles.x: members, factors, train_losses and survivors are filled in by the run",
        ),
        (
            {"ensembles": {"x": BOOSTING | {"rounds": 1}}},
            "ensembles.x.rounds: Input should be greater than or equal to 2",
        ),
        (
            {"ensembles": {"x": {"kind": "parallel", "members": ["big", BOOSTING]}}},
            "ensembles.x: boosting stands in an ensemble of its own",
        ),
        (
            {"ensembles": {"x": BOOSTING, "x-3": pair("big", "small")}},
            "ensembles.x: the name 'x-3' is that of a stage",
        ),
        (
            {
                "ensembles": {
                    "x": BOOSTING,
                    "y": pair("x", "big", kind="sequential") | {"criterion": "agreement"},
                }
            },
            "stage x has no members that could agree",
        ),
    ],
)
def test_boosting_needs_a_model_to_train_and_names_for_its_stages(changed: dict[str, Any], said: str) -> None:
    assert run(ensembles={"x": BOOSTING, "y": pair("x", "big")})
    assert said in refused(**changed)


STACK = {"kind": "sequential", "policy": "stacking", "members": ["big", "small"], "folds": 3}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"ensembles": {"x": {"kind": "parallel", "members": ["big", STACK]}}},
            "a stack with folds stands in an ensemble of its own",
        ),
        (
            {"ensembles": {"x": STACK | {"members": ["big", "chosen"]}}},
            "folds: member 'chosen' must be a model that is trained here",
        ),
        (
            {"ensembles": {"x": STACK}, "models": {"big": model("cnn"), "small": student("big")}},
            "folds: member 'small' must be a model that is trained here, without 'teacher'",
        ),
        (
            {"ensembles": {"x": STACK | {"members": ["big", "pair"]}}, "models": TOGETHER},
            "folds: member 'pair-1' is one of several models of a training",
        ),
    ],
)
def test_folds_need_members_that_can_be_trained_again(changed: dict[str, Any], said: str) -> None:
    found = run(ensembles={"x": STACK, "y": pair("x", "big")})
    assert "folds" not in run(ensembles={"x": STACK | {"folds": None}}).ensembles["x"].plain()
    assert found.ensembles["x"].plain()["folds"] == 3
    assert said in refused(**changed)


@pytest.mark.parametrize(
    ("more", "keys"),
    [
        ({"tolerance": 0.01}, "tolerance"),
        ({"max_cost": 0.5}, "max_cost"),
        ({"max_cost": 0.5, "tolerance": 0}, "tolerance and max_cost"),
    ],
)
def test_given_thresholds_are_not_said_to_be_fitted_for_something(more: dict[str, Any], keys: str) -> None:
    tree = pair("big", "small", kind="sequential") | {"thresholds": [0.9]}
    assert run(ensembles={"x": tree})
    nested = {"kind": "parallel", "members": [tree | more, "big"]}
    for found in (tree | more, nested):
        text = refused(ensembles={"x": found})
        assert f"ensembles.x: given thresholds are kept, so {keys} would do nothing" in text


def test_given_thresholds_have_no_guarantee() -> None:
    tree = pair("big", "small", kind="sequential") | {"thresholds": [0.9], "guarantee": {}}
    assert "leave out 'thresholds' or 'guarantee'" in refused(ensembles={"x": tree})
    # What a fit made has both, and the certificate that says what became of it.
    certificate = {"granted": True, "rows": 100, "lost": 0, "p_value": 0.01}
    assert Cascade.model_validate(tree | {"certificate": certificate}).guarantee == Guarantee()


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (pair("big", "small", kind="sequential"), "a cascade needs a classifier"),
        (pair("big", "small") | {"calibration": "auto"}, "calibration auto needs a classifier"),
        (pair("big", "small") | {"rule": "vote"}, "rule vote is not for task regression"),
    ],
)
def test_a_regression_has_no_ensembles_of_classifiers(tree: dict[str, Any], said: str) -> None:
    assert run(ensembles={"x": tree})
    task = ("data.name=gapminder", "data.task=regression")
    assert f"ensembles.x: {said}" in refused(*task, ensembles={"x": tree})
    assert f"ensembles.x: {said}" in refused(*task, ensembles={"x": pair() | {"members": [tree, "big"]}})
    scaled = pair("big") | {"members": ["big", {"kind": "member", "name": "small", "temperature": 2.0}]}
    assert run(ensembles={"x": scaled})
    said = "a temperature (2, of member small) needs a classifier: leave it out"
    assert f"ensembles.x: {said}" in refused(*task, ensembles={"x": scaled})
    stack = {"kind": "sequential", "policy": "stacking", "members": ["big", "small"]}
    assert run(*task, ensembles={"x": stack, "y": pair("x", "big")})


def test_a_guarantee_holds_no_other_one() -> None:
    inner = pair("big", "small", kind="sequential") | {"guarantee": {}}
    for stage in (inner, "inner", pair("inner", "big")):
        tree = {"kind": "sequential", "guarantee": {}, "stages": [stage, "big"]}
        text = refused(ensembles={"inner": inner, "x": tree})
        assert "ensembles.x: a cascade with a guarantee holds another one" in text
    tree = pair("small", "y", kind="sequential") | {"guarantee": {}}
    text = refused(ensembles={"x": tree, "y": pair("y", "big")})
    assert "ensembles.x: no member is named 'y'" in text


def test_serving_settings_that_would_do_nothing_or_fail_late() -> None:
    assert run(serving={"access": {"keys": "keys", "rate_per_s": 5}})
    assert "give access.keys" in refused(serving={"access": {"rate_per_s": 5}})
    assert run(serving={"placement": "fused", "feedback": {}})
    text = refused(serving={"placement": "fused", "feedback": {}, "replicas": 2})
    assert "feedback needs one replica" in text


def test_only_ensembles_have_members_that_agree() -> None:
    def cascade(*stages: str) -> dict[str, Any]:
        return pair(*stages, kind="sequential") | {"criterion": "agreement"}

    mean, inner = pair("big", "small"), pair("mean", "big", kind="sequential")
    assert run(ensembles={"mean": mean, "x": cascade("mean", "big")})
    assert run(ensembles={"x": cascade() | {"stages": [mean, "big"]}})
    for stage in ("big", "chosen"):
        text = refused(ensembles={"mean": mean, "x": cascade("mean", stage, "small")})
        assert f"ensembles.x: criterion agreement: stage {stage} has no members that could agree" in text
    text = refused(ensembles={"mean": mean, "inner": inner, "x": cascade("inner", "big")})
    assert "stage inner has no members that could agree" in text


def test_shares_sum_to_one() -> None:
    text = refused("data.shares.train=0.8")
    assert "data.shares: train, validation, calibration and contract must sum to 1, got 1.05" in text
    assert run("data.shares.test=0.5", "data.shares.train=0.7", "data.shares.contract=0.15")


def test_the_metric_fits_the_task() -> None:
    assert "metric rmse does not fit task classification" in refused("metric.name=rmse")
    assert "metric accuracy does not fit task regression" in refused(
        "data.name=gapminder", "data.task=regression", "metric.name=accuracy"
    )
    assert run("data.name=gapminder", "data.task=regression").metric.name == "rmse"
    assert run("metric.name=mine:score").metric.name == "mine:score"


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("models.big.resources.workers=[3, 2]", "workers must be at least 1"),
        ("models.big.model={factory: resnet, kwargs: {depth: 9}}", "depth must be 6n + 2"),
        ("models.big.model={factory: vit, kwargs: {dim: 30}}", "dim (30) must be a multiple of heads (4)"),
        (
            "search.space.plan=[{kind: prune_channels, amount: {choice: [1.5]}}]",
            "search.space: prune_channels.amount: Input should be less than 1",
        ),
        (
            "search.space.plan=[{kind: prune_channels, amount: {range: [0.5]}}]",
            "search.space: prune_channels.amount: range: Field required",
        ),
        (
            "search.space.plan=[{kind: prune_channels, amount: {choice: [0.5], nmae: x}}]",
            "search.space: prune_channels.amount: unknown key 'nmae'",
        ),
        ("search.space.plan=[{choice: [null], nmae: x}]", "search.space: step 1: unknown key 'nmae'"),
        ("search.space.plan=[{kind: prune}]", "search.space: Input tag 'prune' found"),
        (
            "variants={clip: {parent: big, plan: [{kind: clip, bits: 0}]}}",
            "variants.clip.plan.0.bits: Input should be greater than",
        ),
        ("models.big.model={factory: mlp, kwargs: {widths: [0]}}", "models.big.model.kwargs.widths.0: Input"),
        (
            "models.big.model={factory: cnn, kwargs: {channels: [-4, 4]}}",
            "models.big.model.kwargs.channels.0",
        ),
        (
            "models.big.training={augment: {flip: true, cutmix: 0.5}}",
            "augment.cutmix needs a distillation loss",
        ),
        (
            "models.big.training={augment: {cutmix: 0.5}, sample: {share: 0.5}, loss: {kind: distillation}}",
            "augment.cutmix and 'sample' exclude each other",
        ),
        (
            "models.big.training={patience: 3, sparsify: {amount: 0.9}}",
            "'patience' and 'sparsify' exclude each other",
        ),
        (
            "search.space.plan=[{kind: recover, training: {transfer: {kind: embedded}}}]",
            "'transfer' is for models of a run file",
        ),
        ("search.space.plan=[{kind: bf16}, {kind: recover}]", "'recover' cannot follow 'bf16' in a plan"),
        (
            "search={sampler: grid, space: {plan: [{kind: clip, percentile: {range: [99.0, 99.9]}}]}}",
            "a step",
        ),
        ("data={kind: parquet, train: a, input: x, features: [y]}", "not both"),
        ("data={kind: parquet, train: a, target: [x, y]}", "one target column"),
    ],
)
def test_other_checks(assignment: str, said: str) -> None:
    assert said in refused(assignment)


@pytest.mark.parametrize("name", ["my net", "../x", "a/b", "*", "", "x" * 101])
def test_names_that_could_not_be_refs_or_files_are_refused(name: str) -> None:
    assert "String should" in refused(models={name: model()}, search=None)


def test_allowed_is_what_the_file_names() -> None:
    assert run().allowed() == frozenset()
    mine = model("mine.nets:make", training={"loss": {"kind": "custom", "loss": "mine.losses:own"}})
    found = run(
        allow=["other.nets:old"],
        data={"kind": "custom", "dataset": "mine.rows:read", "transform": "mine.rows:scale"},
        metric={"name": "mine.metrics:score"},
        models={"big": mine, "s": model(training={"loss": DISTILLED}, teacher="big")},
    )
    assert found.allowed() == {
        "other.nets:old",
        "mine.rows:read",
        "mine.rows:scale",
        "mine.metrics:score",
        "mine.nets:make",
        "mine.losses:own",
    }


def test_options_of_free_values_are_named_by_the_file() -> None:
    model_ = {"factory": {"choice": ["mine.nets:wide", "mine.nets:deep"]}}
    training = {"loss": {"kind": "custom", "loss": {"choice": ["mine.losses:own"]}}}
    section = {"model": "big", "space": {"model": model_, "training": training}}
    found = run(training_search=section, models={"big": model()}, search=None)
    assert found.allowed() == {"mine.nets:wide", "mine.nets:deep", "mine.losses:own"}


def test_a_regression_has_no_votes() -> None:
    data = {"kind": "parquet", "train": "rows.parquet", "target": ["y"], "task": "regression"}
    for rule in ("median", "trimmed_mean"):
        assert run(data=data, search=None, ensembles={"x": {**pair("big", "small"), "rule": rule}})
    nested = {**pair("big", "small"), "members": ["big", {**pair("big", "small"), "rule": "vote"}]}
    text = refused(data=data, search=None, ensembles={"x": nested})
    assert "ensembles.x: rule vote is not for task regression: use mean, median, trimmed_mean" in text


LABELS = {"loss": {"kind": "cross_entropy"}}
RECOVER = {"kind": "recover", "training": LABELS}
ROUNDS = {"kind": "prune_channels", "amount": 0.5, "rounds": 2, "recovery": LABELS}
CHAIN = {"policy": "chain", "kind": "sequential", "members": ["big"]}


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"models": {"big": model(training=LABELS)}}, "models.big.training.loss"),
        ({"variants": {"v": {"parent": "big", "plan": [RECOVER]}}}, "variants.v.plan.recover.training.loss"),
        (
            {"variants": {"v": {"parent": "big", "plan": [ROUNDS]}}},
            "variants.v.plan.prune_channels.recovery.loss",
        ),
        (
            {"search": {"parent": "big", "space": {"plan": [{"choice": [None, RECOVER]}]}}},
            "search.space.plan.recover.training.loss",
        ),
        (
            {"training_search": {"model": "big", "space": {"training": {"choice": [{}, LABELS]}}}},
            "training_search.space: training.loss",
        ),
        (
            {"ensembles": {"c": {**CHAIN, "later": [model(training=LABELS)]}}},
            "ensembles.c.later.loss",
        ),
    ],
)
def test_a_loss_of_another_task_is_refused_wherever_it_stands(changed: dict[str, Any], place: str) -> None:
    sections = {"models": {"big": model(), "small": model()}, **changed}
    assert run(**sections)
    said = refused("data.name=gapminder", "data.task=regression", **sections)
    assert f"{place}: cross_entropy is not for task regression: use mse," in said


def test_options_of_served_members_are_of_members_that_there_are() -> None:
    trees = {"b": BOOSTING, "c": {**CHAIN, "later": [model()]}}
    names = ["small", "b-2", "c-1", "chosen", "v"]
    variants = {"v": {"parent": "big", "plan": [BF16]}}
    members: dict[str, Any] = {name: {"replicas": 2} for name in names}
    assert run(variants=variants, ensembles=trees, serving={"members": members})
    said = refused(variants=variants, ensembles=trees, serving={"members": {**members, "smal": {"gpus": 1}}})
    assert "serving.members: no member is named 'smal'; known: b-2," in said
    assert "no member is named 'chosen'" in refused(search=None, serving={"members": {"chosen": {}}})
