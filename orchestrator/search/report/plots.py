"""The report's charts as plain Plotly figures.

A colour is the name of a CSS variable (`--accent`); the page's script replaces it by the theme's value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.search.pareto import Point, front
from orchestrator.search.report.schema import Details, Epoch, TrialPoint
from orchestrator.search.report.text import SHARES, metric, metric_label, milliseconds, safe, size

Figure = dict[str, Any]
"""`{"data": [...], "layout": {...}}`."""

SERIES = ("--s1", "--s2", "--s3", "--s4", "--s5", "--s6")


def front_figure(search: Mapping[str, Any], details: Details, name: str) -> Figure | None:
    """Metric against latency: trials faint, the front marked, the chosen and the parent named."""
    trials = [trial for trial in details.get("trials", []) if trial.get("status") == "ok"]
    if not trials:
        return None
    on_front = {point["name"] for point in search.get("front") or []}
    chosen_name = (search.get("chosen") or {}).get("name")
    kept = [trial for trial in trials if trial["name"] in on_front]
    chosen = [trial for trial in trials if trial["name"] == chosen_name]
    rest = [trial for trial in trials if trial["name"] not in on_front and trial not in chosen]
    parent = details.get("parent")
    larger = details.get("larger_is_better", True)
    data = [
        _cloud(rest, name, "dominated", "--faint", size_px=9),
        _staircase(kept, name, larger),
        _cloud([trial for trial in kept if trial not in chosen], name, "front", "--accent", size_px=11),
        _cloud([parent] if parent else [], name, "parent", "--text", size_px=13, symbol="diamond"),
        _cloud(chosen, name, "chosen", "--chosen", size_px=17, symbol="star"),
    ]
    everything = [*trials, *([parent] if parent else [])]
    layout: dict[str, Any] = {
        "xaxis": {
            **_log_axis([trial["latency_ms"] for trial in everything]),
            "title": {"text": "latency, ms (log scale)"},
        },
        "yaxis": _metric_axis(name, "validation"),
        "hovermode": "closest",
        "annotations": [_label(trial, "chosen", "--chosen", name) for trial in chosen]
        + ([_label(parent, "parent", "--text", name)] if parent else []),
        "shapes": [],
    }
    if parent and "max_drop" in details:
        level = parent["metric"] + (-details["max_drop"] if larger else details["max_drop"])
        layout["shapes"] = [_line("h", _shown(level, name))]
        layout["annotations"].append(_line_text(_shown(level, name), "allowed drop"))
    return {"data": [trace for trace in data if trace["x"]], "layout": layout}


def comparison_figure(summary: Mapping[str, Any], name: str, larger: bool = True) -> Figure | None:
    """Every model and ensemble as a dot with its interval; a line marks the best single model."""
    singles = [(key, item, "single model", "--s6") for key, item in summary.get("models", {}).items()]
    chosen = (summary.get("search") or {}).get("chosen")
    if chosen and "metric" in chosen:
        singles.append(("chosen variant", chosen, "chosen variant", "--chosen"))
    groups = [(key, item, "ensemble", "--accent") for key, item in summary.get("ensembles", {}).items()]
    entries = sorted(singles + groups, key=lambda entry: entry[1]["metric"]["value"], reverse=not larger)
    if not entries:
        return None
    data = []
    for kind in ("single model", "chosen variant", "ensemble"):
        rows = [entry for entry in entries if entry[2] == kind]
        if rows:
            data.append(_dots(rows, kind, name))
    best = (max if larger else min)((item["metric"]["value"] for _, item, _, _ in singles), default=None)
    layout = {
        "xaxis": _metric_axis(name, "test"),
        "yaxis": {
            "categoryorder": "array",
            "categoryarray": [safe(key) for key, *_ in entries],
            "automargin": True,
            "showgrid": True,
        },
        "shapes": [] if best is None else [_line("v", _shown(best, name))],
        "height": 120 + 34 * len(entries),
    }
    return {"data": data, "layout": layout}


def curve_figure(curves: Mapping[str, Sequence[Epoch]], what: str, name: str) -> Figure | None:
    """Training `loss` or validation `metric` by epoch, one line a model."""
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(epochs) < 30 else "lines",
            "name": safe(model),
            "x": [point["epoch"] for point in epochs],
            "y": [_curve_value(point, what, name) for point in epochs],
            "line": {"color": SERIES[index % len(SERIES)], "width": 2},
            "marker": {"size": 5, "color": SERIES[index % len(SERIES)]},
            "hovertemplate": f"{safe(model)}, epoch %{{x}}: %{{y:.4~g}}<extra></extra>",
        }
        for index, (model, epochs) in enumerate(curves.items())
        if epochs
    ]
    if not data:
        return None
    axis = {"title": {"text": "training loss"}} if what == "loss" else _metric_axis(name, "validation")
    layout = {"xaxis": {"title": {"text": "epoch"}, "rangemode": "tozero"}, "yaxis": axis}
    return {"data": data, "layout": layout}


def _curve_value(point: Epoch, what: str, name: str) -> float:
    return point["loss"] if what == "loss" else _shown(point["metric"], name)


def _cloud(
    trials: Sequence[TrialPoint], name: str, label: str, color: str, *, size_px: int, symbol: str = "circle"
) -> dict[str, Any]:
    middle = [trial["latency_ms"] for trial in trials]
    spans = [trial.get("latency_ci") or (at, at) for trial, at in zip(trials, middle, strict=True)]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label,
        "x": middle,
        "y": [_shown(trial["metric"], name) for trial in trials],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [high - at for (_, high), at in zip(spans, middle, strict=True)],
            "arrayminus": [at - low for (low, _), at in zip(spans, middle, strict=True)],
            "thickness": 1,
            "width": 0,
            "color": color,
        },
        "marker": {
            "size": size_px,
            "symbol": symbol,
            "color": color,
            "line": {"width": 1.5, "color": "--surface"},
        },
        "text": [
            f"<b>{safe(trial['name'])}</b><br>{metric(trial['metric'], name)}"
            f"<br>{milliseconds(trial['latency_ms'])}, {size(trial.get('bytes'))}"
            for trial in trials
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _staircase(kept: Sequence[TrialPoint], name: str, larger: bool) -> dict[str, Any]:
    """The outline of metric against latency; a point that is on the front for its bytes lies below it."""
    sign = 1.0 if larger else -1.0
    points = [Point(sign * trial["metric"], trial["latency_ms"]) for trial in kept]
    outline = [kept[index] for index in front(points)]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [trial["latency_ms"] for trial in outline],
        "y": [_shown(trial["metric"], name) for trial in outline],
        "line": {"shape": "hv", "color": "--accent", "width": 1.5},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _dots(rows: Sequence[tuple[str, Mapping[str, Any], str, str]], kind: str, name: str) -> dict[str, Any]:
    values = [item["metric"]["value"] for _, item, _, _ in rows]
    spans = [item["metric"].get("ci") or (at, at) for (_, item, _, _), at in zip(rows, values, strict=True)]
    color = rows[0][3]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": kind,
        "y": [safe(key) for key, *_ in rows],
        "x": [_shown(value, name) for value in values],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [_shown(high - at, name) for (_, high), at in zip(spans, values, strict=True)],
            "arrayminus": [_shown(at - low, name) for (low, _), at in zip(spans, values, strict=True)],
            "thickness": 2,
            "width": 0,
            "color": color,
        },
        "marker": _marker(12, color),
        "text": [metric(value, name) for value in values],
        "hovertemplate": "<b>%{y}</b><br>%{text}<extra></extra>",
    }


def _marker(size_px: int, color: str) -> dict[str, Any]:
    return {"size": size_px, "color": color, "line": {"width": 1.5, "color": "--surface"}}


def _metric_axis(name: str, part: str) -> dict[str, Any]:
    unit = ", %" if name in SHARES else ""
    return {"title": {"text": f"{metric_label(name)} on {part}{unit}"}, "automargin": True}


def _shown(value: float, name: str) -> float:
    return 100 * value if name in SHARES else value


def _log_axis(values: Sequence[float]) -> dict[str, Any]:
    """A log axis whose ticks are 1, 2 and 5 of each decade, with some room at both ends."""
    low, high = math.log10(min(values)) - 0.12, math.log10(max(values)) + 0.12
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= math.log10(tick) <= high]
    return {
        "type": "log",
        "range": [low, high],
        "tickvals": inside,
        "ticktext": [f"{tick:g}" for tick in inside],
    }


def _label(trial: TrialPoint, prefix: str, color: str, name: str) -> dict[str, Any]:
    return {
        "x": math.log10(trial["latency_ms"]),
        "y": _shown(trial["metric"], name),
        "text": f"<b>{prefix}</b>",
        "showarrow": False,
        "yshift": 18,
        "font": {"color": color, "size": 12},
    }


def _line(direction: str, at: float) -> dict[str, Any]:
    across = {"x0": 0, "x1": 1, "xref": "paper", "y0": at, "y1": at}
    along = {"y0": 0, "y1": 1, "yref": "paper", "x0": at, "x1": at}
    style = {"type": "line", "layer": "below", "line": {"color": "--muted", "width": 1, "dash": "dash"}}
    return {**style, **(across if direction == "h" else along)}


def _line_text(at: float, text: str) -> dict[str, Any]:
    return {
        "x": 0,
        "xref": "paper",
        "xanchor": "left",
        "y": at,
        "yanchor": "bottom",
        "text": text,
        "showarrow": False,
        "font": {"size": 11, "color": "--muted"},
    }
