"""A name belongs to its settings: a file beside what was made under the name remembers them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.config.base import canonical
from orchestrator.errors import ConfigError
from orchestrator.files import write_whole


def claim(file: Path, settings: dict[str, Any], complaint: str, fix: str, *, fresh: bool) -> None:
    """Keep a name for its settings, or refuse it.

    Args:
        file: remembers the settings; made when there is none.
        settings: plain values.
        complaint: what to say when the name was used with others.
        fix: what to do then.
        fresh: take the name over.

    Raises:
        ConfigError: the name was used with other settings; the first difference is told.
    """
    plain = json.loads(canonical(settings))
    if file.exists() and not fresh:
        changed = difference(_read(file), plain)
        if changed is not None:
            raise ConfigError(complaint, changed, fix)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, canonical(plain))


def holds(file: Path, settings: dict[str, Any]) -> bool:
    """Whether a name is kept for just these settings."""
    try:
        return bool(remembered(file) == json.loads(canonical(settings)))
    except ConfigError:
        return False


def difference(before: Any, after: Any, path: str = "") -> str | None:
    """The first place where two plain values differ, as `a.b: old -> new`; None when they are equal."""
    if before == after:
        return None
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            found = difference(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
            if found is not None:
                return found
    return f"{path}: {before!r} -> {after!r}"


def remembered(file: Path) -> dict[str, Any] | None:
    """The settings that a file remembers; None when there is none.

    Raises:
        ConfigError: it cannot be read.
    """
    return _read(file) if file.exists() else None


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("the record of earlier settings cannot be read", file, "pass --fresh") from error
    return found if isinstance(found, dict) else {}
