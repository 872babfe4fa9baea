"""The page: sections of plain HTML around the charts, in one file without any outside reference."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from orchestrator.search.report import plots, sections
from orchestrator.search.report.plots import Figure
from orchestrator.search.report.schema import Details
from orchestrator.search.report.text import safe

# No address can be reached from the page, whatever a name or a note in it says.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def write_report(summary: Mapping[str, Any], details: Details, path: Path) -> None:
    """Write the report whole or not at all.

    Args:
        summary: the run summary, as `summary.json` holds it.
        details: what that lacks; see `schema.Details`.
        path: the file, normally `runs/<name>/report.html`.
    """
    text = render(summary, details)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=".report-", encoding="utf-8", delete=False
    ) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def render(summary: Mapping[str, Any], details: Details) -> str:
    """The page as one string."""
    figures = _figures(summary, details)
    body = "\n".join(
        part
        for part in (
            sections.header(summary, details),
            sections.promise(summary),
            sections.notes(details),
            sections.models(summary, details),
            sections.front(summary, details, "front" in figures),
            sections.comparison("comparison" in figures),
            sections.combination(details),
            sections.training("loss" in figures),
            sections.serving(summary),
            sections.facts(summary),
            sections.run_file(details),
        )
        if part
    )
    assets = resources.files("orchestrator.search.report")
    # Inside a script "<" could open "</script>"; as an escape it is the same JSON.
    data = json.dumps(figures, allow_nan=False).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{safe(summary["run"])}: run report</title>
<style>
{assets.joinpath("page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
{body}
</main>
<script id="figures" type="application/json">{data}</script>
<script>{get_plotlyjs()}</script>
<script>
{assets.joinpath("page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""


def _figures(summary: Mapping[str, Any], details: Details) -> dict[str, Figure]:
    name = sections.metric_name(summary)
    curves = details.get("curves", {})
    larger = details.get("larger_is_better", True)
    found = {
        "front": plots.front_figure(summary.get("search") or {}, details, name),
        "comparison": plots.comparison_figure(summary, name, larger),
        "loss": plots.curve_figure(curves, "loss", name),
        "metric": plots.curve_figure(curves, "metric", name),
    }
    return {key: figure for key, figure in found.items() if figure is not None}
