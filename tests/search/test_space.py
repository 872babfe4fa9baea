"""Configs become the plans and executions they stand for."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from pydantic import ValidationError

from orchestrator.config.free import RESERVED, Range
from orchestrator.config.search import SearchSettings
from orchestrator.config.space import Config, Space, grid, parameters, plan_of, probes
from orchestrator.config.steps import Bf16, ChannelPruning, Clipping, Recovery, StaticInt8
from orchestrator.config.training import Augment, DistillationLoss
from orchestrator.search import arms, space
from orchestrator.search.ray_search import _SHARED
from tests.search.spaces import small

JOINT = Space.model_validate(
    {
        "plan": [
            {
                "choice": [
                    None,
                    [
                        {"kind": "prune_channels", "amount": {"range": [0.1, 0.6], "step": 0.1}},
                        {
                            "kind": "recover",
                            "training": {
                                "epochs": {"range": [1, 4]},
                                "loss": {"kind": "distillation", "temperature": {"choice": [1, 4]}},
                            },
                        },
                    ],
                ]
            },
            {"choice": [None, {"kind": "clip", "method": "percentile", "percentile": {"range": [99, 99.9]}}]},
            {"choice": [None, {"kind": "int8_static", "observer": {"choice": ["minmax", "mse"]}}]},
        ]
    }
)


def asked(settings: SearchSettings, **params: object) -> Config:
    return space.suggest(optuna.trial.FixedTrial(params), settings)  # type: ignore[arg-type]


def of(plan: object, **more: object) -> SearchSettings:
    return SearchSettings.model_validate({"space": {"plan": plan}, **more})


def test_only_what_the_plan_needs_is_asked_for() -> None:
    whole = {"prune_channels": "none", "precision": "bf16"}
    assert asked(SearchSettings(), **whole) == whole
    pruned = {
        "prune_channels": "prune_channels+recover",
        "prune_channels.amount": 0.5,
        "prune_channels.criterion": "lamp",
        "precision": "fp32",
    }
    assert asked(SearchSettings(), **pruned) == pruned


def test_a_joint_config_is_its_plan() -> None:
    config: Config = {
        "prune_channels": "prune_channels+recover",
        "prune_channels.amount": 0.3,
        "recover.training.epochs": 2,
        "recover.training.loss.temperature": 4,
        "clip": "clip",
        "clip.percentile": 99.5,
        "precision": "int8_static",
        "int8_static.observer": "mse",
    }
    pruning, recovery, clipping, quantization = plan_of(JOINT, config)
    assert pruning == ChannelPruning(amount=0.3)
    assert isinstance(recovery, Recovery)
    assert recovery.training.epochs == 2
    assert isinstance(recovery.training.loss, DistillationLoss)
    assert recovery.training.loss.temperature == 4
    assert clipping == Clipping(method="percentile", percentile=99.5)
    assert quantization == StaticInt8(observer="mse")


def test_whole_numbers_stay_whole_and_a_range_has_both_ends() -> None:
    found = parameters(JOINT)
    assert found["recover.training.epochs"].numbers.values() == (1, 2, 3, 4)  # type: ignore[union-attr]
    assert found["prune_channels.amount"].numbers.values() == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # type: ignore[union-attr]
    assert found["clip.percentile"].numbers.values() is None  # type: ignore[union-attr]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(40):
        config = space.suggest(study.ask(), SearchSettings(space=JOINT))
        assert isinstance(config.get("recover.training.epochs", 1), int)
        assert 0.1 <= config.get("prune_channels.amount", 0.1) <= 0.6  # type: ignore[operator]
        plan_of(JOINT, config)


def test_a_range_of_floats_is_not_one_of_whole_numbers() -> None:
    floats, whole = Range(range=(1.0, 8.0)), Range(range=(1, 8))
    assert (floats.whole, floats.values()) == (False, None)
    assert (whole.whole, whole.values()) == (True, (1, 2, 3, 4, 5, 6, 7, 8))
    assert Range(range=(1, 2), step=0.5).values() == (1, 1.5, 2)


def test_small_numbers_keep_their_digits() -> None:
    free = Space.model_validate(
        {"plan": [{"kind": "recover", "training": {"weight_decay": {"range": [1e-8, 1e-4], "log": True}}}]}
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    configs = [space.suggest(study.ask(), SearchSettings(space=free)) for _ in range(20)]
    assert all(1e-8 <= float(config["recover.training.weight_decay"]) <= 1e-4 for config in configs)
    assert len({config["recover.training.weight_decay"] for config in configs}) == 20


def test_options_of_the_same_steps_have_names_of_their_own() -> None:
    once = {"kind": "prune_channels", "amount": {"choice": [0.25, 0.5]}, "criterion": "l1"}
    settings = of([{"choice": [[once], [{**once, "criterion": "fpgm"}]], "name": "which"}])
    names = [space.name_of(config, settings) for config in grid(settings.space) or ()]
    assert len(set(names)) == 4


def test_a_whole_fp32_variant_has_the_empty_plan() -> None:
    settings = SearchSettings()
    assert space.plan_of({"prune_channels": "none", "precision": "fp32"}, settings) == ()
    assert space.plan_of({"prune_channels": "none", "precision": "bf16"}, settings) == (Bf16(),)


@pytest.mark.parametrize(
    ("precision", "wanted", "executions"),
    [
        ("fp32", ["aoti", "lowered", "eager"], ["aoti", "eager"]),
        ("bf16", ["lowered", "eager"], ["eager"]),
        ("int8_static", ["openvino", "aoti", "lowered", "eager"], ["openvino", "aoti", "lowered"]),
        ("int8_static", ["lowered", "eager"], ["lowered"]),
        ("int8_dynamic", ["aoti", "lowered", "eager"], ["lowered"]),
    ],
)
def test_executions(precision: str, wanted: list[str], executions: list[str]) -> None:
    settings = SearchSettings.model_validate({"executions": wanted})
    config: Config = {"prune_channels": "none", "precision": precision}
    assert list(space.executions_of(config, settings)) == executions


def test_a_precision_that_could_not_run_is_refused() -> None:
    with pytest.raises(ValidationError, match="int8_dynamic runs in none of aoti, eager; add lowered"):
        SearchSettings(executions=("aoti", "eager"))


def test_the_grid_has_every_variant_once() -> None:
    settings = SearchSettings()
    configs = grid(settings.space)
    assert configs is not None
    # 4 whole ones; 2 amounts x 3 criteria x 4 precisions.
    assert len(configs) == 4 + 24
    assert len({space.variant_key(config, settings) for config in configs}) == len(configs)
    assert len({space.name_of(config, settings) for config in configs}) == len(configs)


def test_the_grid_counts_a_step_and_gives_up_on_a_continuum() -> None:
    assert [
        config["prune_channels.amount"] for config in grid(small(amounts=[0.25, 0.5], whole=False)) or ()
    ] == [
        0.25,
        0.25,
        0.5,
        0.5,
    ]
    assert grid(JOINT) is None
    with pytest.raises(ValidationError, match="give each range a step"):
        SearchSettings(space=JOINT, sampler="grid")


def test_probes_take_each_option_and_each_end_once() -> None:
    found = probes(JOINT)
    for name, parameter in parameters(JOINT).items():
        assert {config[name] for config in found if name in config} >= set(parameter.probes)


def test_anchors_change_whole_steps_alone() -> None:
    configs = space.anchors(SearchSettings())
    assert [space.name_of(config, SearchSettings()) for config in configs] == [
        "fp32",
        "amount=0.25 criterion=l2 fp32",
        "bf16",
        "int8_static",
        "int8_dynamic",
    ]


def test_names_are_short_and_tell_apart_what_ends_alike() -> None:
    settings = SearchSettings(space=JOINT)
    assert space.name_of(probes(JOINT)[0], settings) == "fp32"
    twice = of(
        [
            {"kind": "prune_channels", "amount": {"choice": [0.25, 0.5]}},
            {"kind": "prune_magnitude", "amount": {"choice": [0.5, 0.75]}},
        ]
    )
    config: Config = {"prune_channels.amount": 0.25, "prune_magnitude.amount": 0.5}
    assert space.name_of(config, twice) == "prune_channels.amount=0.25 prune_magnitude.amount=0.5"


def test_names_tell_apart_options_with_steps_in_common() -> None:
    prune: Any = {"kind": "prune_channels", "amount": {"choice": [0.25, 0.5]}}
    recover = {"kind": "recover", "training": {"loss": {"kind": "distillation"}}}
    plan = [{"choice": [None, prune, [prune, recover]]}]
    settings = SearchSettings.model_validate({"space": {"plan": plan}})
    names = [space.name_of(config, settings) for config in grid(settings.space) or ()]
    assert len(set(names)) == len(names) == 5
    assert "prune_channels+recover amount=0.5" in names


def test_other_models_are_shown_by_the_first_characters_of_their_digests() -> None:
    assert space.displayed({"others": f'["{"ab" * 32}"]', "amount": 0.5}) == {
        "others": '["abababababab"]',
        "amount": 0.5,
    }


def test_one_name_may_be_shared_but_not_mean_two_things() -> None:
    once = {"kind": "prune_channels", "amount": {"choice": [0.25, 0.5]}, "criterion": "l1"}
    shared = of([{"choice": [once, {**once, "criterion": "l2"}], "name": "which"}])
    assert len(grid(shared.space) or ()) == 4
    other = {**once, "amount": {"choice": [0.1, 0.2]}}
    with pytest.raises(
        ValidationError, match=r"two different free values are called 'prune_channels\.amount'"
    ):
        of([{"choice": [once, other], "name": "which"}])
    named = {**once, "amount": {"choice": [0.1, 0.2], "name": "less"}}
    assert len(grid(of([{"choice": [once, named], "name": "which"}]).space) or ()) == 4


def test_names_that_the_search_keeps_for_itself_are_refused() -> None:
    assert {arms._KEY, space._BEFORE, *_SHARED} == RESERVED
    for name in RESERVED:
        with pytest.raises(ValidationError, match=f"no free value may be called '{name}'"):
            of([{"choice": [None, {"kind": "bf16"}], "name": name}])


def test_shares_of_layer_groups_are_free_values_like_any() -> None:
    shares = {"body.0*": {"range": [0.0, 0.5], "step": 0.25}, "body.1*": {"choice": [0.25, 0.5]}}
    settings = of([{"kind": "prune_channels", "amount": 0.5, "shares": shares}])
    configs = grid(settings.space)
    assert configs is not None
    assert len(configs) == 6
    assert space.plan_of(configs[1], settings) == (
        ChannelPruning(amount=0.5, shares={"body.0*": 0.0, "body.1*": 0.5}),
    )


def test_a_list_or_a_null_may_be_an_option() -> None:
    settings = of([{"kind": "recover", "training": {"patience": {"choice": [None, 2]}}}])
    found = grid(settings.space)
    assert found is not None
    first, second = found
    assert first == {"recover.training.patience": "none"}
    assert space.plan_of(first, settings) == (Recovery.model_validate({"training": {"patience": None}}),)
    assert second == {"recover.training.patience": 2}


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (
            [{"kind": "prune_channels", "amount": {"choice": [0.5, 1.5]}}],
            r"prune_channels\.amount: .*less than 1",
        ),
        ([{"kind": "prune_channels", "amount": {"range": [-0.1, 0.5]}}], r"greater than 0 \(with .*-0\.1"),
        ([{"kind": "prune_channels", "amount": {"range": [0.5, 0.1]}}], r"low end \(0\.5\) must not exceed"),
        (
            [{"kind": "prune_channels", "amount": {"range": [0.1, 0.5], "step": 0.1, "log": True}}],
            "log scale",
        ),
        ([{"kind": "bf16"}, {"kind": "recover"}], "'recover' cannot follow 'bf16'"),
        ([{"choice": [None, {"kind": "bf16"}]}, {"kind": "recover"}], "'recover' cannot follow 'bf16'"),
        ([{"kind": "prune_channels", "amout": 0.5}], r"unknown key 'prune_channels\.amout'"),
        ([{"kind": "prune"}], "does not match any of the expected tags"),
        ([3], "step 1 of the plan must be a step"),
        ([{"choice": []}], "at least 1 item"),
        ({"kind": "bf16"}, "a list of steps"),
    ],
)
def test_a_space_that_no_plan_could_hold_is_refused(plan: object, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Space.model_validate({"plan": plan})


def test_arms_stand_beside_the_space() -> None:
    loss = {"kind": "distillation", "features": [{"student": "body.1"}]}
    distill = {
        "kind": "distill",
        "model": {"factory": "mlp", "kwargs": {"widths": [8]}},
        "training": {"loss": loss, "augment": {"flip": True, "cutmix": 0.5}},
    }
    settings = SearchSettings.model_validate({"small": distill})
    found = arms.arms(settings)
    assert list(found) == [arms.COMPILED, arms.BF16, arms.SCRATCH, arms.DISTILLED]
    config = arms.config_of(arms.BF16)
    assert space.plan_of(config, settings) == (Bf16(),)
    assert space.executions_of(config, settings) == ("aoti", "eager")
    assert space.name_of(config, settings) == "bf16 compiled"
    (scratch,) = found[arms.SCRATCH].plan
    # Nothing of the teacher: mixed rows, too, would be its alone.
    assert (scratch.training.loss.weight, scratch.training.loss.features) == (0, ())  # type: ignore[union-attr]
    assert scratch.training.augment == Augment(flip=True)  # type: ignore[union-attr]
    assert arms.arm_of({"precision": "bf16"}) is None
    assert len(arms.arms(SearchSettings())) == 2
