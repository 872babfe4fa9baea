"""From a trial's flat config to a plan and an execution, and back to a readable name."""

from __future__ import annotations

import itertools

import optuna

from orchestrator.config.base import fingerprint
from orchestrator.config.measure import Execution
from orchestrator.config.search import Choice, Numbers, SearchSettings, Space
from orchestrator.config.steps import (
    EXECUTIONS,
    Bf16,
    ChannelPruning,
    Criterion,
    DynamicInt8,
    Plan,
    Precision,
    Recovery,
    StaticInt8,
    Step,
    WeightOnlyInt4,
    WeightOnlyInt8,
)
from orchestrator.config.training import DistillationLoss
from orchestrator.errors import SearchError

Config = dict[str, float | str]
"""`amount`, `precision` and, when `amount` > 0, `criterion` and (with distillation) `temperature`."""

_DIGITS = 6
_LARGEST_GRID = 10_000
_PRECISION_STEPS: dict[str, Step] = {
    "bf16": Bf16(),
    "int8_static": StaticInt8(),
    "int8_dynamic": DynamicInt8(),
    "int8_weight_only": WeightOnlyInt8(),
    "int4_weight_only": WeightOnlyInt4(),
}


def suggest(trial: optuna.Trial, settings: SearchSettings) -> Config:
    """Ask for one config; numbers are rounded so that equal choices give equal plans."""
    space = settings.space
    config: Config = {"amount": _number(trial, "amount", space.amount)}
    if config["amount"] != 0:
        config["criterion"] = trial.suggest_categorical("criterion", space.criterion)
        if _distils(settings.recovery):
            config["temperature"] = _number(trial, "temperature", space.temperature)
    config["precision"] = trial.suggest_categorical("precision", space.precision)
    return config


def plan_of(config: Config, settings: SearchSettings) -> Plan:
    """The compression plan that a config stands for; empty when it changes nothing."""
    plan: Plan = ()
    if (amount := float(config["amount"])) > 0:
        pruning = ChannelPruning.model_validate({"amount": amount, "criterion": config["criterion"]})
        plan = (pruning, _recovery(settings.recovery, config.get("temperature")))
    step = _PRECISION_STEPS.get(str(config["precision"]))
    return plan if step is None else (*plan, step)


def executions_of(precision: Precision, settings: SearchSettings) -> tuple[Execution, ...]:
    """How a variant of this precision is to run: the first that it can; at least one."""
    return tuple(one for one in settings.executions if one in EXECUTIONS[precision])


def precision_of(config: Config) -> Precision:
    """The config's precision, checked.

    Raises:
        SearchError: it is none of the known ones.
    """
    for known in ("fp32", *_PRECISION_STEPS):
        if config["precision"] == known:
            return known  # type: ignore[return-value]
    raise SearchError(
        "unknown precision", config["precision"], f"use one of fp32, {', '.join(_PRECISION_STEPS)}"
    )


def variant_key(config: Config, settings: SearchSettings) -> str:
    """Equal for two configs that give the same variant: same plan, same execution."""
    plan = [step.plain() for step in plan_of(config, settings)]
    return fingerprint([plan, list(executions_of(precision_of(config), settings))])


def name_of(config: Config) -> str:
    """Short readable name, like `p50-lamp-t4-bf16`; the unpruned one is `whole-bf16`."""
    if not float(config["amount"]):
        return f"whole-{config['precision']}"
    parts = [f"p{100 * float(config['amount']):g}", str(config["criterion"])]
    if "temperature" in config:
        parts.append(f"t{float(config['temperature']):g}")
    return "-".join([*parts, str(config["precision"])])


def anchors(settings: SearchSettings) -> list[Config]:
    """Every precision of the unpruned model: plain baselines that no search should lack.

    At most a third of the trials, and none where the space does not hold the unpruned model.
    """
    space = settings.space
    if not _contains_zero(space.amount):
        return []
    whole: list[Config] = [{"amount": 0.0, "precision": precision} for precision in space.precision]
    return whole[: settings.trials // 3]


def grid(settings: SearchSettings) -> list[Config] | None:
    """All configs of a space that is finite and not huge, in a fixed order; else None."""
    space = settings.space
    amounts, temperatures = _values(space.amount), _values(space.temperature)
    if amounts is None or temperatures is None:
        return None
    if len(amounts) * len(temperatures) * len(space.criterion) * len(space.precision) > _LARGEST_GRID:
        return None
    return [config for amount in amounts for config in _configs_of(amount, temperatures, settings)]


def _configs_of(amount: float, temperatures: tuple[float, ...], settings: SearchSettings) -> list[Config]:
    space: Space = settings.space
    if amount == 0:
        return [{"amount": 0.0, "precision": precision} for precision in space.precision]
    pruned: list[tuple[Criterion, float]] = list(itertools.product(space.criterion, temperatures))
    found: list[Config] = []
    for (criterion, temperature), precision in itertools.product(pruned, space.precision):
        config: Config = {"amount": amount, "criterion": criterion, "precision": precision}
        if _distils(settings.recovery):
            config["temperature"] = temperature
        if config not in found:
            found.append(config)
    return found


def _number(trial: optuna.Trial, name: str, numbers: Numbers) -> float:
    if isinstance(numbers, Choice):
        value = float(trial.suggest_categorical(name, numbers.values))
    else:
        value = trial.suggest_float(name, numbers.low, numbers.high, step=numbers.step, log=numbers.log)
    return round(value, _DIGITS)


def _values(numbers: Numbers) -> tuple[float, ...] | None:
    if isinstance(numbers, Choice):
        return tuple(dict.fromkeys(round(value, _DIGITS) for value in numbers.values))
    if numbers.low == numbers.high:
        return (round(numbers.low, _DIGITS),)
    if numbers.step is None:
        return None
    steps = int((numbers.high - numbers.low) / numbers.step + 1e-9)
    return tuple(round(numbers.low + index * numbers.step, _DIGITS) for index in range(steps + 1))


def _contains_zero(numbers: Numbers) -> bool:
    return 0.0 in numbers.values if isinstance(numbers, Choice) else numbers.low == 0


def _distils(recovery: Recovery) -> bool:
    return recovery.training.loss is None or isinstance(recovery.training.loss, DistillationLoss)


def _recovery(recovery: Recovery, temperature: float | str | None) -> Recovery:
    """The settings' recovery at this temperature; a recovery without distillation stays as it is."""
    if temperature is None:
        return recovery
    loss = recovery.training.loss
    base = loss if isinstance(loss, DistillationLoss) else DistillationLoss()
    distil = base.model_copy(update={"temperature": float(temperature)})
    return recovery.model_copy(update={"training": recovery.training.model_copy(update={"loss": distil})})
