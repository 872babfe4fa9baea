"""The report's other charts as plain data: training curves, and models beside ensembles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.search.report.schema import Epoch
from orchestrator.search.report.text import SHARES, metric_interval, metric_name

Figure = dict[str, Any]
"""What the page's script draws."""

SERIES = ("--s1", "--s2", "--s3", "--s4", "--s5", "--s6")


def comparison_figure(summary: Mapping[str, Any], name: str, larger: bool = True) -> Figure | None:
    """Every model and ensemble as a dot with its interval, the best at the top; `best` is of a single one."""
    singles = [(key, item, "single model") for key, item in summary.get("models", {}).items()]
    chosen = (summary.get("search") or {}).get("chosen")
    if chosen and "metric" in chosen:
        singles.append(("chosen variant", chosen, "chosen variant"))
    groups = [(key, item, "ensemble") for key, item in summary.get("ensembles", {}).items()]
    entries = sorted(singles + groups, key=lambda entry: entry[1]["metric"]["value"], reverse=not larger)
    if not entries:
        return None
    return {
        "title": f"{metric_name(name)} on test",
        "percent": name in SHARES,
        "best": (max if larger else min)((item["metric"]["value"] for _, item, _ in singles), default=None),
        "rows": [_dot(key, item["metric"], kind, name) for key, item, kind in entries],
    }


def _dot(key: str, quality: Mapping[str, Any], kind: str, name: str) -> Figure:
    value = quality["value"]
    shown = f"{100 * value:.2f}\u00a0%" if name in SHARES else f"{value:.4g}"
    span = metric_interval(quality.get("ci"), name)
    text = f"{shown} ({span})" if span else shown
    return {"name": key, "value": value, "ci": quality.get("ci"), "kind": kind, "text": text}


def curve_figure(curves: Mapping[str, Sequence[Epoch]], what: str, name: str) -> Figure | None:
    """Training `loss` or validation `metric` by epoch, one series a model."""
    series = [
        {
            "name": model,
            "points": [
                [point["epoch"], value]
                for point in epochs
                if math.isfinite(value := point["loss"] if what == "loss" else point["metric"])
            ],
        }
        for model, epochs in curves.items()
    ]
    series = [one for one in series if one["points"]]
    if not series:
        return None
    if what == "loss":
        return {"title": "training loss", "percent": False, "series": series}
    return {"title": f"{metric_name(name)} on validation", "percent": name in SHARES, "series": series}
