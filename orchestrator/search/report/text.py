"""How numbers and names are written for people. All but `metric_name` return text that is safe in HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

SHARES = (
    "accuracy",
    "subset_accuracy",
    "macro_f1",
    "micro_f1",
    "mean_average_precision",
    "auroc",
    "recall_at_precision",
)
"""Metrics that are shares: shown in percent."""
NONE = "\u2013"
_LONGEST_LIST = 12


_LABELS = {
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "auroc": "AUROC",
    "nll": "NLL",
    "mae": "MAE",
    "rmse": "RMSE",
}


def safe(value: object) -> str:
    """Escaped text."""
    return escape(str(value), quote=True)


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits."""
    if value is None or not math.isfinite(value):
        return NONE
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{min(decimals, 6)}f}"


def metric_name(name: str) -> str:
    """The metric's readable name, of an imported one the function's; not escaped."""
    return _LABELS.get(name, name.partition(":")[2] or name).replace("_", " ")


def metric_label(name: str) -> str:
    """The metric's readable name, escaped."""
    return safe(metric_name(name))


def metric(value: float | None, name: str) -> str:
    """A metric's value: percent for shares."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{100 * value:.2f}\u00a0%" if name in SHARES else number(value, 4)


def metric_interval(ci: Sequence[float] | None, name: str) -> str:
    """`96.1 to 98.0`, without unit."""
    if not ci:
        return ""
    low, high = ci
    return (
        f"{100 * low:.1f} to {100 * high:.1f}" if name in SHARES else f"{number(low, 3)} to {number(high, 3)}"
    )


def milliseconds(value: float | None) -> str:
    return NONE if value is None else f"{number(value)}\u00a0ms"


def interval(ci: Sequence[float] | None) -> str:
    """`1.21 to 1.34`."""
    return f"{number(ci[0])} to {number(ci[1])}" if ci else ""


def size(value: float | None) -> str:
    """Bytes in decimal units."""
    if value is None:
        return NONE
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{number(value / factor)}\u00a0{unit}"
    return f"{value:.0f}\u00a0B"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `1 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def facts(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain values as (name, text) pairs, names joined by a dot; nothing is dropped silently."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            found += _mapping(name, value)
        elif str(key).endswith("bytes") and isinstance(value, (int, float)):
            found.append((safe(name.removesuffix(" bytes")), size(value)))
        elif isinstance(value, (list, tuple)):
            found.append((safe(name), _listed(value)))
        elif value is not None and value != "":
            found.append((safe(name), _plain(value)))
    return found


def _mapping(name: str, value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A mapping of plain values takes one line, a deeper one a line each."""
    if all(isinstance(item, (int, float, str)) for item in value.values()) and value:
        return [(safe(name), ", ".join(f"{safe(key)} {_plain(item)}" for key, item in value.items()))]
    return facts(value, f"{name} \u00b7 ")


def _listed(values: Iterable[Any]) -> str:
    items = list(values)
    shown = ", ".join(_plain(item) for item in items[:_LONGEST_LIST])
    return shown + (f", and {len(items) - _LONGEST_LIST} more" if len(items) > _LONGEST_LIST else "")


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value, 4)
    text = str(value)
    return f"<code>{safe(text[:16])}…</code>" if len(text) == 64 and text.isalnum() else safe(text)
