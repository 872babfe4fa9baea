"""Free values in plain values: `{choice: [...]}` or `{range: [low, high]}` where a value would stand.

What stands inside an option is asked for only when that option is taken, so conditions need no words of
their own. A free value is named after its place (`training.lr`) unless it has a `name`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import Field, JsonValue, ValidationError, model_validator

from orchestrator.config.base import Settings

Scalar = float | int | str | bool
Config = dict[str, Scalar]
"""The free values of one trial, by name: numbers, or the labels of options."""

_DIGITS = 6
"""Numbers are rounded, so that equal choices give equal plans."""
LARGEST_GRID = 10_000
RESERVED = frozenset({"arm", "job", "judge", "mailbox", "trained before"})
"""Entries of a trial's config that are no free values."""


class Choice(Settings):
    """One of several values; in place of a step also null, or a list of steps."""

    choice: tuple[JsonValue, ...] = Field(min_length=1)
    name: str | None = None


class Range(Settings):
    """A number between two ends, in steps, or on a log scale; whole when ends and step are."""

    range: tuple[int | float, int | float]
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


F = TypeVar("F", Choice, Range)
Pick = Callable[[Parameter], Scalar]


class Template(Settings):
    """Settings in which free values stand."""

    def walk(self, pick: Pick) -> JsonValue:
        """The plain values with every free one as `pick` chose it, in the order of the file.

        Raises:
            ValueError: a free value is written wrongly.
        """
        raise NotImplementedError


def filled(space: Template, config: Mapping[str, Scalar]) -> JsonValue:
    """The plain values that a config stands for.

    Raises:
        KeyError: the config lacks a free value that it needs.
    """
    return space.walk(lambda parameter: config[parameter.name])


def complete(space: Template, config: Mapping[str, Scalar]) -> Config:
    """The config with first options and low ends for what it does not say, and nothing that is not asked."""
    found: Config = {}

    def pick(parameter: Parameter) -> Scalar:
        found[parameter.name] = config.get(parameter.name, parameter.first)
        return found[parameter.name]

    space.walk(pick)
    return found


def parameters(space: Template) -> dict[str, Parameter]:
    """All free values by name, those inside options too, in the order in which they are met.

    Raises:
        ValueError: two different free values have one name, or one has a name of the search's own.
    """
    return _explore(space)[0]


def probes(space: Template) -> list[Config]:
    """Configs that together take each option and each end once, the others at their first."""
    return _explore(space)[1]


def _explore(space: Template) -> tuple[dict[str, Parameter], list[Config]]:
    known: dict[str, Parameter] = {}
    waiting: list[Config] = [{}]
    found: list[Config] = []
    while waiting:
        asked = waiting.pop(0)

        def pick(parameter: Parameter, asked: Config = asked) -> Scalar:
            seen = known.get(parameter.name)
            if parameter.name in RESERVED:
                raise ValueError(
                    f"no free value may be called '{parameter.name}', which the search keeps for itself: "
                    "give it another 'name'"
                )
            if seen is None:
                known[parameter.name] = parameter
                others = [value for value in parameter.probes if value != parameter.first]
                waiting.extend({**asked, parameter.name: value} for value in others)
            elif seen != parameter:
                raise ValueError(
                    f"two different free values are called '{parameter.name}': give one of them a 'name'"
                )
            return asked.get(parameter.name, parameter.first)

        space.walk(pick)
        found.append(complete(space, asked))
    return known, found


def _every(parameter: Parameter) -> tuple[Scalar, ...]:
    return parameter.labels or (parameter.numbers and parameter.numbers.values()) or ()


def grid(
    space: Template, values_of: Callable[[Parameter], tuple[Scalar, ...]] = _every
) -> list[Config] | None:
    """All configs of a space that is finite and not huge, in a fixed order; else None.

    `values_of` gives what a free value may be; nothing of one that is endless.
    """
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
                values = values_of(parameter)
                endless = endless or not values
                value = values[0] if values else parameter.first
                before = tuple(config.values())
                stack.extend((*before, other) for other in reversed(values[1:]))
            config[parameter.name] = value
            return value

        space.walk(pick)
        if endless or len(found) + len(stack) >= LARGEST_GRID:
            return None
        found.append(config)
    return found


def rounded(number: float) -> float | int:
    """To the digits that a plan keeps, whatever its size; whole numbers stay whole."""
    return number if isinstance(number, int) else float(f"{number:.{_DIGITS}g}")


def value_of(value: JsonValue, path: str, pick: Pick) -> JsonValue:
    """A plain value with the free ones inside it as `pick` chose them; `path` is its place."""
    if isinstance(value, list):
        return [value_of(one, f"{path}.{index}", pick) for index, one in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if "choice" in value:
        free = read(Choice, value, path)
        labels = distinct(tuple(map(_label, free.choice)))
        label = pick(Parameter(free.name or path, labels))
        option = free.choice[option_at(labels, label, free.name or path)]
        # Two architectures have keys of one name that mean different things.
        inside = isinstance(option, dict) and isinstance(option.get("factory"), str)
        return value_of(option, f"{path}.{label}" if inside else path, pick)
    if "range" in value:
        numbers = read(Range, value, path)
        return pick(Parameter(numbers.name or path, None, numbers))
    return {key: value_of(one, f"{path}.{key}", pick) for key, one in value.items()}


def read(kind: type[F], value: JsonValue, path: str) -> F:
    """A free value from plain values.

    Raises:
        ValueError: says what is wrong at this place, which pydantic's own error would not name.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ValueError(f"{path}: {_problem(error)}") from error


def option_at(labels: tuple[Scalar, ...], label: Scalar, name: str) -> int:
    """Which option of the free value `name` has this label.

    Raises:
        ValueError: none has.
    """
    for place, known in enumerate(labels):
        if known == label and isinstance(known, bool) == isinstance(label, bool):
            return place
    raise ValueError(f"{name} has no option {label!r}: {', '.join(map(str, labels))}")


def _label(option: JsonValue) -> Scalar:
    if isinstance(option, dict) and isinstance(option.get("factory"), str):
        return str(option["factory"])
    if isinstance(option, float):
        return rounded(option)
    if isinstance(option, bool | int | str):
        return option
    return "none" if option is None else json.dumps(option, sort_keys=True)


def distinct(labels: tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    """Equal labels of different options are numbered."""
    seen: dict[Scalar, int] = {}
    found: list[Scalar] = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        found.append(label if seen[label] == 1 else f"{label} {seen[label]}")
    return tuple(found)


def first_complaint(error: ValidationError, config: Config) -> str:
    """What pydantic found wrong first, as the writer of the file would say it."""
    return f"{_problem(error)} (with {shown(config)})"


def _problem(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
    if first["type"] == "extra_forbidden":
        return f"unknown key '{place}'"
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def shown(config: Config) -> str:
    """A config for people."""
    return ", ".join(f"{name}: {value}" for name, value in config.items()) or "no free value"


def named(space: Template) -> Iterator[tuple[str, str]]:
    """Each free value's name and the shortest end of it that no other one shares."""
    names = list(parameters(space))
    ends = {name: name.split(".") for name in names}
    for name in names:
        for count in range(1, len(ends[name]) + 1):
            short = ".".join(ends[name][-count:])
            if all(other == name or ".".join(ends[other][-count:]) != short for other in names):
                break
        yield name, short
