"""A space of plans: a plan in which any value, and any step, may be one of several.

    plan:
      - choice:                                     # a step, several steps, or null for none
          - null
          - - {kind: prune_channels, amount: {range: [0.1, 0.6], step: 0.1}}
            - {kind: recover, training: {loss: {kind: distillation, temperature: {choice: [1, 4]}}}}
      - choice: [null, {kind: bf16}, {kind: int8_static}]

What stands inside an option is asked for only when that option is taken, so conditions need no words of
their own. A free value is named after its place (`prune_channels.amount`) unless it has a `name`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from orchestrator.config.base import Settings
from orchestrator.config.quantization import Precision
from orchestrator.config.steps import PLAN, Plan, first_out_of_order, precision_of

Scalar = float | int | str | bool
Config = dict[str, Scalar]
"""The free values of one trial, by name: numbers, or the labels of options."""

_DIGITS = 6
"""Numbers are rounded, so that equal choices give equal plans."""
_PRECISIONS = frozenset(get_args(Precision))
LARGEST_GRID = 10_000


class Choice(Settings):
    """One of several values; in place of a step also null, or a list of steps."""

    choice: tuple[JsonValue, ...] = Field(min_length=1)
    name: str | None = None


class Range(Settings):
    """A number between two ends, in steps, or on a log scale; whole when ends and step are."""

    range: tuple[int, int] | tuple[float, float]
    step: int | float | None = Field(None, gt=0)
    log: bool = False
    name: str | None = None

    @model_validator(mode="after")
    def _ends(self) -> Range:
        low, high = self.range
        if low > high:
            raise ValueError(f"range: the low end ({low:g}) must not exceed the high one ({high:g})")
        if self.log and (low <= 0 or self.step is not None):
            raise ValueError("a log scale needs a low end above 0 and no step")
        return self

    @property
    def whole(self) -> bool:
        """Whether its numbers are integers."""
        return all(isinstance(number, int) for number in (*self.range, self.step or 0))

    def values(self) -> tuple[float | int, ...] | None:
        """All of them; None of a continuum."""
        low, high = self.range
        if low == high:
            return (rounded(low),)
        step = self.step or (1 if self.whole else None)
        if step is None:
            return None
        return tuple(rounded(low + index * step) for index in range(int((high - low) / step + 1e-9) + 1))


@dataclass(frozen=True)
class Parameter:
    """A free value that a walk through the space came to."""

    name: str
    labels: tuple[Scalar, ...] | None
    """Of a choice's options."""
    numbers: Range | None = None
    of_steps: bool = False
    """Whether whole steps are chosen."""

    @property
    def first(self) -> Scalar:
        """The first option, or the low end."""
        if self.labels is not None:
            return self.labels[0]
        assert self.numbers is not None
        return rounded(self.numbers.range[0])

    @property
    def probes(self) -> tuple[Scalar, ...]:
        """All options, or both ends."""
        if self.labels is not None:
            return self.labels
        assert self.numbers is not None
        return tuple(dict.fromkeys(rounded(end) for end in self.numbers.range))


Pick = Callable[[Parameter], Scalar]


class Space(Settings):
    """What a trial may choose."""

    plan: tuple[JsonValue, ...] = (
        {
            "choice": [
                None,
                [
                    {
                        "kind": "prune_channels",
                        "amount": {"choice": [0.25, 0.5]},
                        "criterion": {"choice": ["l2", "lamp", "fpgm"]},
                    },
                    {"kind": "recover"},
                ],
            ]
        },
        {"choice": [None, {"kind": "bf16"}, {"kind": "int8_static"}, {"kind": "int8_dynamic"}]},
    )
    """Steps in their order, as in a variant's plan; `{choice: [...]}` or `{range: [low, high]}` may stand
    for any value in them, `{choice: [...]}` for a whole step."""

    @field_validator("plan", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        if isinstance(value, dict):
            raise ValueError("the plan of a space is a list of steps: put '- ' before it")
        return value

    @model_validator(mode="after")
    def _every_plan_is_one(self) -> Space:
        for config in probes(self):
            try:
                plan = plan_of(self, config)
            except ValidationError as error:
                raise ValueError(_first_complaint(error, config)) from error
            if (pair := first_out_of_order(plan)) is not None:
                raise ValueError(
                    f"'{pair[1].kind}' cannot follow '{pair[0].kind}' in a plan (with {_shown(config)})"
                )
        return self


def walk(space: Space, pick: Pick) -> list[JsonValue]:
    """The plan with every free value as `pick` chose it, as plain values, in the order of the file.

    Raises:
        ValueError: a free value is written wrongly.
    """
    steps: list[JsonValue] = []
    for place, item in enumerate(space.plan):
        found = _step(item, f"step {place + 1}", pick)
        steps += [step for step in (found if isinstance(found, list) else [found]) if step is not None]
    return steps


def plan_of(space: Space, config: Mapping[str, Scalar]) -> Plan:
    """The plan that a config stands for; empty when it changes nothing.

    Raises:
        KeyError: the config lacks a free value that it needs.
        ValidationError: the space allows values that the step does not.
    """
    return PLAN.validate_python(walk(space, lambda parameter: config[parameter.name]))


def complete(space: Space, config: Mapping[str, Scalar]) -> Config:
    """The config with first options and low ends for what it does not say, and nothing that is not asked."""
    found: Config = {}

    def pick(parameter: Parameter) -> Scalar:
        found[parameter.name] = config.get(parameter.name, parameter.first)
        return found[parameter.name]

    walk(space, pick)
    return found


def parameters(space: Space) -> dict[str, Parameter]:
    """All free values by name, those inside options too, in the order in which they are met.

    Raises:
        ValueError: two different free values have one name.
    """
    return _explore(space)[0]


def probes(space: Space) -> list[Config]:
    """Configs that together take each option and each end once, the others at their first."""
    return _explore(space)[1]


def _explore(space: Space) -> tuple[dict[str, Parameter], list[Config]]:
    known: dict[str, Parameter] = {}
    waiting: list[Config] = [{}]
    found: list[Config] = []
    while waiting:
        asked = waiting.pop(0)

        def pick(parameter: Parameter, asked: Config = asked) -> Scalar:
            seen = known.get(parameter.name)
            if seen is None:
                known[parameter.name] = parameter
                others = [value for value in parameter.probes if value != parameter.first]
                waiting.extend({**asked, parameter.name: value} for value in others)
            elif seen != parameter:
                raise ValueError(
                    f"two different free values are called '{parameter.name}': give one of them a 'name'"
                )
            return asked.get(parameter.name, parameter.first)

        walk(space, pick)
        found.append(complete(space, asked))
    return known, found


def every_precision(space: Space) -> list[Precision]:
    """The number types that plans of the space end in, in the order of its options."""
    return list(dict.fromkeys(precision_of(plan_of(space, config)) for config in probes(space)))


def grid(space: Space) -> list[Config] | None:
    """All configs of a space that is finite and not huge, in a fixed order; else None."""
    found: list[Config] = []
    stack: list[tuple[Scalar, ...]] = [()]
    while stack:
        taken = stack.pop()
        config: Config = {}
        endless = False

        def pick(parameter: Parameter, taken: tuple[Scalar, ...] = taken, config: Config = config) -> Scalar:
            nonlocal endless
            if parameter.name in config:
                return config[parameter.name]
            place = len(config)
            if place < len(taken):
                value = taken[place]
            else:
                values = parameter.labels or (parameter.numbers and parameter.numbers.values()) or ()
                endless = endless or not values
                value = values[0] if values else parameter.first
                before = tuple(config.values())
                stack.extend((*before, other) for other in reversed(values[1:]))
            config[parameter.name] = value
            return value

        walk(space, pick)
        if endless or len(found) + len(stack) >= LARGEST_GRID:
            return None
        found.append(config)
    return found


def rounded(number: float) -> float | int:
    """To the digits that a plan keeps; whole numbers stay whole."""
    return number if isinstance(number, int) else round(number, _DIGITS)


def _step(item: JsonValue, place: str, pick: Pick) -> JsonValue:
    """One item of the plan: a step, or a choice among steps, lists of steps and null."""
    if isinstance(item, list):
        return list(itertools.chain(*(_listed(_step(one, place, pick)) for one in item)))
    if isinstance(item, dict) and "choice" in item:
        free = Choice.model_validate(item)
        name = free.name or _name_of_steps(free.choice)
        labels = _distinct(tuple(_label_of_steps(option, name) for option in free.choice))
        label = pick(Parameter(name, labels, of_steps=True))
        return _step(free.choice[_place(labels, label, name)], place, pick)
    if item is None:
        return None
    if not (isinstance(item, dict) and isinstance(item.get("kind"), str)):
        raise ValueError(f"{place} of the plan must be a step with a 'kind', a choice or null, got {item!r}")
    return _value(item, str(item["kind"]), pick)


def _value(value: JsonValue, path: str, pick: Pick) -> JsonValue:
    if isinstance(value, list):
        return [_value(one, f"{path}.{index}", pick) for index, one in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if "choice" in value:
        free = Choice.model_validate(value)
        labels = _distinct(tuple(map(_label, free.choice)))
        label = pick(Parameter(free.name or path, labels))
        return _value(free.choice[_place(labels, label, free.name or path)], path, pick)
    if "range" in value:
        numbers = Range.model_validate(value)
        return pick(Parameter(numbers.name or path, None, numbers))
    return {key: _value(one, f"{path}.{key}", pick) for key, one in value.items()}


def _place(labels: tuple[Scalar, ...], label: Scalar, name: str) -> int:
    for place, known in enumerate(labels):
        if known == label and isinstance(known, bool) == isinstance(label, bool):
            return place
    raise ValueError(f"{name} has no option {label!r}: {', '.join(map(str, labels))}")


def _listed(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else [value]


def _kinds(option: JsonValue) -> list[str]:
    """Of the steps of an option, those behind a further choice left out."""
    steps = [step for step in _listed(option) if isinstance(step, dict)]
    return [str(step["kind"]) for step in steps if "kind" in step]


def _name_of_steps(options: tuple[JsonValue, ...]) -> str:
    kinds = [kind for option in options for kind in _kinds(option)]
    if kinds and set(kinds) <= _PRECISIONS:
        return "precision"
    return kinds[0] if kinds else "steps"


def _label_of_steps(option: JsonValue, name: str) -> str:
    if option is None or option == []:
        return "fp32" if name == "precision" else "none"
    return "+".join(_kinds(option)) or "steps"


def _label(option: JsonValue) -> Scalar:
    if isinstance(option, float):
        return rounded(option)
    if isinstance(option, bool | int | str):
        return option
    return "none" if option is None else json.dumps(option, sort_keys=True)


def _distinct(labels: tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    """Equal labels of different options are numbered."""
    seen: dict[Scalar, int] = {}
    found: list[Scalar] = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        found.append(label if seen[label] == 1 else f"{label} {seen[label]}")
    return tuple(found)


def _first_complaint(error: ValidationError, config: Config) -> str:
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        return f"unknown key '{'.'.join(str(part) for part in first['loc'] if not isinstance(part, int))}'"
    # The union's tags are of no use to the reader.
    place = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
    return f"{place}: {first['msg'].removeprefix('Value error, ')} (with {_shown(config)})"


def _shown(config: Config) -> str:
    return ", ".join(f"{name}: {value}" for name, value in config.items()) or "no free value"


def named(space: Space) -> Iterator[tuple[str, str]]:
    """Each free value's name and the shortest end of it that no other one shares."""
    names = list(parameters(space))
    ends = {name: name.split(".") for name in names}
    for name in names:
        for count in range(1, len(ends[name]) + 1):
            short = ".".join(ends[name][-count:])
            if all(other == name or ".".join(ends[other][-count:]) != short for other in names):
                break
        yield name, short
