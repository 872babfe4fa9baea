"""Run files to settings and back: YAML, overrides, clear errors, JSON Schema."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.config.base import Settings
from orchestrator.config.run import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.redact import redact

S = TypeVar("S", bound=Settings)

LONGEST_SHOWN = 200
"""Characters of a place or a value in an error."""
_TYPE = re.compile(r"(?:literal|list|tuple|dict)\[|(?:int|float|str|bool)$")
"""What pydantic adds to a location for a union of plain types."""
_MERGE = "tag:yaml.org,2002:merge"
"""Of the key `<<`."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML would keep the last without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here a mapping is as it was written: what `<<` brings in comes later, and may be overridden.
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            line = key.start_mark.line + 1
            first = lines.get((key.tag, key.value))
            if first is not None:
                shown = key.value[:LONGEST_SHOWN]
                raise yaml.YAMLError(f"line {line}: the key '{shown}' stands in line {first} already")
            lines[key.tag, key.value] = line
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "cannot read the run file", path, f"check the path ({error.__class__.__name__})"
        ) from error
    return parse_yaml(text, str(path))


def yaml_value(text: str) -> Any:
    """The value of YAML text.

    Raises:
        yaml.YAMLError: it is none; also for a date or a number that does not exist, like 2024-02-30.
    """
    try:
        return yaml.load(text, _Loader)
    except ValueError as error:
        raise yaml.YAMLError(str(error)) from error


def parse_yaml(text: str, origin: str) -> dict[str, Any]:
    """The mapping in YAML text; `origin` names it in errors."""
    try:
        value = yaml_value(text)
    except yaml.YAMLError as error:
        raise ConfigError("not valid YAML", origin, " ".join(str(error).split())) from error
    if not isinstance(value, dict):
        raise ConfigError("the run file must be a mapping of settings", origin, "see examples/digits.yaml")
    return value


def override(values: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of `values` with each `a.b=c` applied; the value is read as YAML.

    Raises:
        ConfigError: an assignment has no '=', or its path leads through something that is no mapping.
    """
    changed: dict[str, Any] = _copy(values)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError("an override must look like a.b=c", assignment)
        place: Any = changed
        for key in keys[:-1]:
            place = place.setdefault(key, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise ConfigError("the override's path leads through a value that has no keys", assignment)
        try:
            place[keys[-1]] = yaml_value(text)
        except yaml.YAMLError as error:
            raise ConfigError("the override's value is not valid YAML", assignment) from error
    return changed


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def validate(cls: type[S], values: dict[str, Any], origin: str) -> S:
    """Settings from plain values.

    Raises:
        ConfigError: one sentence that names the first wrong key, its value and the nearest valid key.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise explained(error, cls, origin) from None


def explained(error: ValidationError, cls: type[BaseModel], origin: str) -> ConfigError:
    """What pydantic found wrong first, in one sentence: the key, its value and the nearest valid one.

    Args:
        error: of the settings class `cls`.
        cls: what the values were to be.
        origin: names the values for their writer, like the path of their file.
    """
    problems = error.errors(include_url=False)
    # An unknown key explains most of what follows from it, so it is told first.
    first = next((found for found in problems if found["type"] == "extra_forbidden"), problems[0])
    unknown = first["type"] == "extra_forbidden"
    place = ".".join(_keys(first["loc"], _all_tags(cls, set()), unknown_key=unknown))[:LONGEST_SHOWN]
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    if unknown:
        fields = _fields_at(cls, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), fields, n=1, cutoff=0.5)
        fix = f"did you mean '{near[0]}'" if near else f"valid keys here: {', '.join(fields)}"
        return ConfigError(f"unknown key in {origin}{more}", place, fix)
    message = first["msg"].removeprefix("Value error, ")
    value = first.get("input")
    plain = isinstance(value, (str, int, float, bool)) and first["type"] != "json_invalid"
    shown = f" (got {redact(repr(value))[:LONGEST_SHOWN]})" if plain else ""
    near = difflib.get_close_matches(str(value), re.findall(r"'([^']*)'", message), n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'" if first["type"] == "literal_error" and near else ""
    return ConfigError(f"{origin}: {place + ': ' if place else ''}{message}{shown}{more}", fix=hint)


def load_run(path: Path, assignments: Sequence[str] = ()) -> RunConfig:
    """The run file at `path` with overrides applied."""
    return validate(RunConfig, override(read_yaml(path), assignments), str(path))


def json_schema() -> dict[str, Any]:
    """JSON Schema of the run file, for editors."""
    return RunConfig.model_json_schema()


def _keys(loc: tuple[str | int, ...], tags: set[object], *, unknown_key: bool) -> Iterator[str]:
    """A location as the user wrote it: pydantic adds the tag of each union that it went through."""
    for position, part in enumerate(loc):
        named_by_user = position == 0 or (position == 1 and loc[0] in ("models", "variants", "ensembles"))
        is_last = unknown_key and position == len(loc) - 1
        is_tag = part in tags or _TYPE.match(str(part)) is not None
        if named_by_user or is_last or not is_tag:
            yield str(part)


def _literals(cls: type[BaseModel]) -> set[object]:
    """The literal `kind`, `policy` or `factory` values that select this class in a union."""
    annotations = [
        cls.model_fields[name].annotation
        for name in ("kind", "policy", "factory")
        if name in cls.model_fields
    ]
    return {value for annotation in annotations for value in get_args(annotation)}


def _fields_at(cls: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """Valid keys of the settings class that a pydantic location leads to."""
    candidates: list[type[BaseModel]] = [cls]
    for part in loc:
        deeper: list[type[BaseModel]] = []
        for candidate in candidates:
            if isinstance(part, str) and part in candidate.model_fields:
                deeper += _classes_in(candidate.model_fields[part].annotation)
            elif part in _literals(candidate) or part == "imported":
                deeper.append(candidate)
        candidates = deeper or candidates
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _classes_in(annotation: Any) -> list[type[BaseModel]]:
    """All settings classes inside a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _classes_in(part)]


def _all_tags(cls: type[BaseModel], seen: set[type[BaseModel]]) -> set[object]:
    """Union tags of all settings classes below `cls`; a union without tags has the names of its classes."""
    if cls in seen:
        return set()
    seen.add(cls)
    below = [found for field in cls.model_fields.values() for found in _classes_in(field.annotation)]
    return {cls.__name__, "imported", *_literals(cls)}.union(*(_all_tags(found, seen) for found in below))
