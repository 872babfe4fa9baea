"""From a space to a sampler's questions, and from a config to a variant: its settings, execution and name."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Collection, Iterable, Mapping
from functools import singledispatch
from typing import Any, cast

import optuna

from orchestrator.config import space
from orchestrator.config.base import fingerprint
from orchestrator.config.free import Config, Parameter, Scalar, filled, named, parameters, probes, rounded
from orchestrator.config.measure import Execution
from orchestrator.config.search import Searching, SearchSettings
from orchestrator.config.steps import EXECUTIONS, Plan, Recovery, epochs_of, precision_of
from orchestrator.search.arms import arm_of, arms

__all__ = [
    "Config",
    "anchors",
    "decided",
    "displayed",
    "draw",
    "drawn",
    "executions_of",
    "going_on",
    "meaning_of",
    "name_of",
    "plan_of",
    "suggest",
    "trained_before",
    "training_prefix",
    "variant_key",
]

_DIGEST = re.compile(r"[0-9a-f]{64}")
"""Of another model or ensemble, which is shown by its first characters."""


def suggest(trial: optuna.Trial, settings: Searching) -> Config:
    """Ask for the free values that one variant needs."""
    config: Config = {}

    def pick(parameter: Parameter) -> Scalar:
        if parameter.name not in config:
            config[parameter.name] = _ask(trial, parameter)
        return config[parameter.name]

    settings.space.walk(pick)
    return config


def plan_of(config: Config, settings: SearchSettings) -> Plan:
    """The compression plan that a config, or an honest arm, stands for; empty when it changes nothing.

    Where a recovery goes on from earlier ones (`going_on`), they stand before it, the first one first.
    """
    if (arm := arm_of(config)) is not None:
        return arms(settings)[arm].plan
    plan = space.plan_of(settings.space, config)
    before = [space.plan_of(settings.space, one) for one in trained_before(config)]
    place = next((place for place, step in enumerate(plan) if isinstance(step, Recovery)), 0)
    return (*plan[:place], *(one[place] for one in before), *plan[place:])


_BEFORE = "trained before"
"""Entry of a config, beside its free values: the free values of earlier recoveries, as JSON."""


def going_on(config: Config, values: Config) -> Config:
    """The config whose recovery goes on, with these free values, from where that of `config` ended."""
    own = {name: value for name, value in config.items() if name != _BEFORE}
    return {**values, _BEFORE: json.dumps([*trained_before(config), own])}


def trained_before(config: Config) -> list[Config]:
    """The free values of the recoveries that come before the config's own, the first one first."""
    found: list[Config] = json.loads(str(config.get(_BEFORE, "[]")))
    return found


def displayed(config: Config) -> Config:
    """The config as people read it: the number of its generation stands for what was trained before."""
    before = trained_before(config)
    own = {
        name: _DIGEST.sub(lambda found: found[0][:12], value) if isinstance(value, str) else value
        for name, value in config.items()
        if name != _BEFORE
    }
    return {**own, "generation": len(before) + 1} if before else own


def executions_of(
    config: Config, settings: Searching, lacking: Collection[Execution] = ()
) -> tuple[Execution, ...]:
    """How the variant of a config is to run: the first that it can; at least one.

    Those that a machine is `lacking` are left out, unless no other one is wanted.
    """
    wanted = _wanted(config, settings)
    return tuple(one for one in wanted if one not in lacking) or wanted


def _wanted(config: Config, settings: Searching) -> tuple[Execution, ...]:
    if not isinstance(settings, SearchSettings):
        return ("eager",)
    if (arm := arm_of(config)) is not None:
        return arms(settings)[arm].executions
    precision = precision_of(plan_of(config, settings))
    return tuple(one for one in settings.executions if one in EXECUTIONS[precision])


def meaning_of(settings: Searching) -> dict[str, int]:
    """What tells a study from one of before whose settings read alike and meant other trials; mostly nothing.

    A step's `training` took the place of the step's own once, and is laid over it now. Siblings shared what
    earlier batches trained alone once.
    """
    siblings = isinstance(settings, SearchSettings) and settings.siblings > 0
    return ({"trainings": 2} if space.leaves_open(settings.space.plain()) else {}) | (
        {"siblings": 2} if siblings else {}
    )


def variant_key(config: Config, settings: Searching) -> str:
    """Equal for two configs that give the same variant: same settings, same execution."""
    return fingerprint([decided(settings, config), list(executions_of(config, settings))])


@singledispatch
def decided(settings: Searching, config: Config) -> Any:
    """What a config, or an honest arm, stands for as plain values."""
    return filled(settings.space, config)


@decided.register
def _(settings: SearchSettings, config: Config) -> Any:
    return [step.plain() for step in plan_of(config, settings)]


def name_of(config: Config, settings: Searching) -> str:
    """Short readable name, like `amount=0.5 criterion=l2 bf16`; a plan without a choice is `plan`."""
    if (arm := arm_of(config)) is not None:
        return arm
    known, short = parameters(settings.space), dict(named(settings.space))
    parts: list[str] = []
    for name, value in displayed(config).items():
        if name in known and known[name].of_steps:
            labels = known[name].labels or ()
            if value != "none" and not _shows(name, str(value), map(str, labels), config):
                parts.append(str(value))
        else:
            text = f"{value:g}" if _is_number(value) else str(value)
            parts.append(f"{short.get(name, name)}={text}")
    return " ".join(parts) or "plan"


@singledispatch
def anchors(settings: Searching) -> list[Config]:
    """What a search begins with, before its sampler chooses: nothing, unless a kind of search has more."""
    del settings
    return []


@anchors.register
def _(settings: SearchSettings) -> list[Config]:
    """The first option everywhere, and each other option of a whole step alone: plain baselines."""
    known = parameters(settings.space)
    return [
        config
        for config in probes(settings.space)
        if all(known[name].of_steps or value == known[name].first for name, value in config.items())
    ]


def training_prefix(config: Config, settings: SearchSettings) -> Config:
    """The free values that decide the plan's steps up to the last one that trains; empty when none does.

    Configs that share them share the trained artifact in the store.
    """
    trains = [place for place, step in enumerate(plan_of(config, settings)) if epochs_of([step])]
    for end in range(1, len(settings.space.plan) + 1) if trains else ():
        asked: Config = {}

        def pick(parameter: Parameter, asked: Config = asked) -> Scalar:
            asked[parameter.name] = config[parameter.name]
            return asked[parameter.name]

        # Each item of the space gives steps of its own, so the first items give the first steps.
        steps = settings.space.model_copy(update={"plan": settings.space.plan[:end]}).walk(pick)
        if len(steps) > trains[-1]:
            return asked
    return {}


def trainings_of(config: Config, settings: SearchSettings) -> tuple[str, ...]:
    """A name for each step of the plan that trains; equal where all that is done up to its end is equal."""
    plan = plan_of(config, settings)
    steps = [step.plain() for step in plan]
    return tuple(fingerprint(steps[: place + 1]) for place, step in enumerate(plan) if epochs_of([step]))


def draw(settings: Searching, source: random.Random, fixed: Mapping[str, Scalar]) -> Config:
    """A config at random, but for the free values that are given."""
    config: Config = {}

    def pick(parameter: Parameter) -> Scalar:
        if parameter.name not in config:
            value = drawn(parameter, source)
            config[parameter.name] = fixed.get(parameter.name, value)
        return config[parameter.name]

    settings.space.walk(pick)
    return config


def drawn(parameter: Parameter, source: random.Random) -> Scalar:
    """One of a free value's options or numbers at random."""
    numbers = parameter.numbers
    if numbers is None:
        return source.choice(parameter.labels or (parameter.first,))
    if (values := numbers.values()) is not None and not numbers.log:
        return source.choice(values)
    low, high = (math.log(end) if numbers.log else end for end in numbers.range)
    number = source.uniform(low, high)
    number = math.exp(number) if numbers.log else number
    return round(number) if numbers.whole else rounded(number)


def _ask(trial: optuna.Trial, parameter: Parameter) -> Scalar:
    if parameter.labels is not None:
        return cast(Scalar, trial.suggest_categorical(parameter.name, parameter.labels))
    numbers = parameter.numbers
    assert numbers is not None
    low, high = numbers.range
    if numbers.whole:
        step = int(numbers.step or 1)
        return trial.suggest_int(parameter.name, int(low), int(high), step=step, log=numbers.log)
    return rounded(
        trial.suggest_float(parameter.name, float(low), float(high), step=numbers.step, log=numbers.log)
    )


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shows(name: str, label: str, labels: Iterable[str], config: Mapping[str, Scalar]) -> bool:
    """Whether values inside the chosen option tell already that it was chosen, and no other one."""
    inside = {other.split(".")[0] for other in config if other != name}
    return [one for one in labels if inside & set(one.split("+"))] == [label]
