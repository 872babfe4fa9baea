"""Configs become the plans and executions they stand for."""

from __future__ import annotations

import optuna
import pytest
from pydantic import ValidationError

from orchestrator.config.search import Choice, SearchSettings, Space, Uniform
from orchestrator.config.steps import Bf16, ChannelPruning, Recovery, StaticInt8
from orchestrator.config.training import CrossEntropy, DistillationLoss, Training
from orchestrator.errors import SearchError
from orchestrator.search import space


def asked(settings: SearchSettings, **params: object) -> space.Config:
    return space.suggest(optuna.trial.FixedTrial(params), settings)  # type: ignore[arg-type]


def test_an_unpruned_trial_is_asked_for_its_precision_only() -> None:
    assert asked(SearchSettings(), amount=0.0, precision="bf16") == {"amount": 0.0, "precision": "bf16"}


def test_a_pruned_trial_is_asked_for_criterion_and_temperature() -> None:
    params = {"amount": 0.5, "criterion": "lamp", "temperature": 4.0, "precision": "fp32"}
    assert asked(SearchSettings(), **params) == params


def test_without_distillation_there_is_no_temperature() -> None:
    settings = SearchSettings(recovery=Recovery(training=Training(loss=CrossEntropy())))
    config = asked(settings, amount=0.5, criterion="l2", precision="fp32")
    assert "temperature" not in config
    assert space.plan_of(config, settings)[1] == settings.recovery


def test_plan_has_pruning_recovery_at_the_temperature_and_precision() -> None:
    config: space.Config = {
        "amount": 0.5,
        "criterion": "fpgm",
        "temperature": 2.0,
        "precision": "int8_static",
    }
    settings = SearchSettings()
    pruning, recovery, quantization = space.plan_of(config, settings)
    assert pruning == ChannelPruning(amount=0.5, criterion="fpgm")
    assert isinstance(recovery, Recovery)
    assert isinstance(recovery.training.loss, DistillationLoss)
    assert recovery.training.loss.temperature == 2.0
    assert recovery.training.epochs == settings.recovery.training.epochs
    assert quantization == StaticInt8()
    assert settings.recovery == SearchSettings().recovery


def test_a_whole_fp32_variant_has_the_empty_plan() -> None:
    assert space.plan_of({"amount": 0.0, "precision": "fp32"}, SearchSettings()) == ()
    assert space.plan_of({"amount": 0.0, "precision": "bf16"}, SearchSettings()) == (Bf16(),)


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
    assert list(space.executions_of(space.precision_of({"precision": precision}), settings)) == executions


def test_a_precision_that_could_not_run_is_refused() -> None:
    with pytest.raises(ValidationError, match="int8_dynamic runs in none of aoti, eager; add lowered"):
        SearchSettings(executions=("aoti", "eager"))


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(SearchError, match="int4"):
        space.precision_of({"precision": "int4"})


def test_equal_variants_have_equal_keys_and_others_do_not() -> None:
    settings = SearchSettings()
    configs = space.grid(settings)
    assert configs is not None
    # 4 whole ones; 2 amounts x 3 criteria x 2 temperatures x 4 precisions.
    assert len(configs) == 4 + 48
    assert len({space.variant_key(config, settings) for config in configs}) == len(configs)
    assert len({space.name_of(config) for config in configs}) == len(configs)


def test_grid_counts_a_step_and_gives_up_on_a_continuum() -> None:
    stepped = Space(amount=Uniform(low=0.1, high=0.4, step=0.1), temperature=Choice(values=(1,)))
    configs = space.grid(SearchSettings(space=stepped))
    assert configs is not None
    assert sorted({float(config["amount"]) for config in configs}) == [0.1, 0.2, 0.3, 0.4]
    assert space.grid(SearchSettings(space=Space(amount=Uniform(low=0, high=0.4)))) is None


def test_anchors_are_the_unpruned_model_in_each_precision() -> None:
    assert [config["precision"] for config in space.anchors(SearchSettings(trials=12))] == [
        "fp32",
        "bf16",
        "int8_static",
        "int8_dynamic",
    ]
    assert len(space.anchors(SearchSettings(trials=6))) == 2
    assert space.anchors(SearchSettings(space=Space(amount=Choice(values=(0.5,))))) == []


def test_names_are_short_and_readable() -> None:
    assert space.name_of({"amount": 0.0, "precision": "bf16"}) == "whole-bf16"
    full: space.Config = {"amount": 0.25, "criterion": "l2", "temperature": 4.0, "precision": "int8_static"}
    assert space.name_of(full) == "p25-l2-t4-int8_static"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"amount": Choice(values=(0.5, 1.0))}, "0 <= amount < 1"),
        ({"amount": Uniform(low=-0.1, high=0.5)}, "0 <= amount < 1"),
        ({"temperature": Choice(values=(0.0, 4.0))}, "temperature must be > 0"),
    ],
)
def test_a_space_that_no_plan_could_hold_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Space.model_validate(change)
