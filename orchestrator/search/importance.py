"""Which searched parameters decided the trials' quality, latency and size."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, create_trial

FEWEST_TRIALS = 12
"""With fewer finished trials no importance is given."""
_BEST_SHARE = 0.1
_FEWEST_BEST = 5
_SHUFFLES = 20
_DEVIATIONS = 3.0
_LOG_SPAN = 100.0

Value = float | int | str | bool


class Importance(NamedTuple):
    """Shares of the parameters that varied, largest first, summing to 1; without any, the reason."""

    shares: dict[str, float]
    reason: str = ""
    """A sentence; empty when there are shares."""


def importance(configs: Sequence[Mapping[str, Value]], losses: Sequence[float]) -> Importance:
    """How much each parameter decides whether a trial is among the best tenth (at least five) of all.

    PED-ANOVA (Watanabe et al. 2023, https://arxiv.org/abs/2304.10255) in its form for conditional
    parameters (https://arxiv.org/abs/2601.20800): a parameter that only some trials have is judged among
    those. It looks at one parameter at a time; two that work only together may both seem unimportant. A
    parameter counts only as far as it passes what the same trials with shuffled losses show.

    Args:
        configs: what each finished trial chose; a conditional parameter is absent where it has no meaning.
        losses: one a trial, smaller is better.
    """
    finite = [(config, loss) for config, loss in zip(configs, losses, strict=True) if math.isfinite(loss)]
    if len(finite) < FEWEST_TRIALS:
        return Importance(
            {}, f"{len(finite)} finished trials are too few to tell: at least {FEWEST_TRIALS} are needed."
        )
    if len({loss for _, loss in finite}) == 1:
        return Importance({}, "All finished trials are equal in it, so no parameter matters.")
    spaces = _spaces([config for config, _ in finite])
    if not spaces:
        return Importance({}, "No parameter took more than one value.")
    shares = _shares([_trial(config, spaces) for config, _ in finite], [loss for _, loss in finite])
    if not shares:
        return Importance({}, f"What the best of {len(finite)} trials chose is not to be told from chance.")
    return Importance(shares)


def constant(configs: Sequence[Mapping[str, Value]]) -> dict[str, Value]:
    """Parameters that have one and the same value wherever they occur."""
    found: dict[str, Value] = {}
    varied: set[str] = set()
    for config in configs:
        for name, value in config.items():
            if found.setdefault(name, value) != value:
                varied.add(name)
    return {name: value for name, value in found.items() if name not in varied}


def is_number(value: object) -> bool:
    """A finite number that is not a truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def on_log_scale(values: Sequence[float]) -> bool:
    """Whether numbers span so much that their ratios tell more than their differences."""
    return bool(values) and min(values) > 0 and max(values) >= _LOG_SPAN * min(values)


def _spaces(configs: Sequence[Mapping[str, Value]]) -> dict[str, BaseDistribution]:
    """By parameter the range or the choices that occur; those with one value are left out."""
    values: dict[str, list[Value]] = {}
    for config in configs:
        for name, value in config.items():
            values.setdefault(name, []).append(value)
    return {
        name: _distribution(occurring)
        for name, occurring in sorted(values.items())
        if len({str(value) for value in occurring}) > 1
    }


def _distribution(values: Sequence[Value]) -> BaseDistribution:
    if all(is_number(value) for value in values):
        numbers = [float(value) for value in values]
        return FloatDistribution(min(numbers), max(numbers), log=on_log_scale(numbers))
    # As text, since True equals 1 and optuna finds a choice by equality.
    return CategoricalDistribution(sorted({str(value) for value in values}))


def _trial(config: Mapping[str, Value], spaces: Mapping[str, BaseDistribution]) -> FrozenTrial:
    own = {name: space for name, space in spaces.items() if name in config}
    return create_trial(
        value=0.0,  # the loss is looked up by the trial's number
        params={
            name: float(config[name]) if isinstance(space, FloatDistribution) else str(config[name])
            for name, space in own.items()
        },
        distributions=own,
    )


def _shares(trials: Sequence[FrozenTrial], losses: Sequence[float]) -> dict[str, float]:
    """What each parameter has beyond chance; one that shuffled losses reach as well is left out."""
    study = _study(trials)
    best = min(max(_BEST_SHARE, _FEWEST_BEST / len(trials)), 0.5)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=best)

    def raw(values: Sequence[float]) -> dict[str, float]:
        return evaluator.evaluate(study, target=lambda trial: values[trial.number])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a branch with one trial, which then counts as nothing
        found = raw(losses)
        shuffled = list(losses)
        chance: dict[str, list[float]] = {name: [] for name in found}
        draw = random.Random(0)
        for _ in range(_SHUFFLES):
            draw.shuffle(shuffled)
            for name, value in raw(shuffled).items():
                chance[name].append(value)
    beyond = {
        name: value - fmean(chance[name])
        for name, value in found.items()
        if value > max(*chance[name], fmean(chance[name]) + _DEVIATIONS * pstdev(chance[name]))
    }
    total = sum(beyond.values())
    return {
        name: value / total for name, value in sorted(beyond.items(), key=lambda item: (-item[1], item[0]))
    }


def _study(trials: Sequence[FrozenTrial]) -> optuna.Study:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="minimize")
        study.add_trials(trials)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return study
