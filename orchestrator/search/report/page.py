"""The page: sections of plain HTML around the charts, in one file without any outside reference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from orchestrator.files import write_whole
from orchestrator.search.report import choosing, elsewhere, members, plots, search, sections, variants
from orchestrator.search.report.plots import Figure
from orchestrator.search.report.schema import Details
from orchestrator.search.report.targets import search_data
from orchestrator.search.report.text import safe

# No address can be reached from the page, whatever a name or a note in it says.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

_SCRIPTS = ("text", "draw", "front", "parallel", "table", "detail", "lines", "choosing", "heat", "page")
"""Joined in this order; each is a few functions about one thing."""


def write_report(summary: Mapping[str, Any], details: Details, path: Path) -> None:
    """Write the report whole or not at all.

    Args:
        summary: the run summary, as `summary.json` holds it.
        details: what that lacks; see `schema.Details`.
        path: the file, normally `runs/<name>/report.html`.
    """
    text = render(summary, details)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


def render(summary: Mapping[str, Any], details: Details) -> str:
    """The page as one string."""
    figures = _figures(summary, details)
    name = sections.metric_name(summary)
    body = "\n".join(
        part
        for part in (
            sections.header(summary, details),
            sections.promise(summary),
            sections.notes(details),
            sections.models(summary, details),
            variants.section(summary),
            search.section(summary, details, name),
            choosing.section(details),
            sections.comparison(figures["comparison"] is not None),
            sections.combination(details),
            members.section(summary, details, name),
            elsewhere.section(summary),
            sections.training(bool(figures["curves"])),
            sections.serving(summary),
            sections.facts(summary),
            sections.run_file(details),
        )
        if part
    )
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
{_asset("page.css")}</style>
</head>
<body>
<main>
{body}
</main>
<script id="figures" type="application/json">{data}</script>
<script>
(() => {{
"use strict";
{"".join(_asset(f"{script}.js") for script in _SCRIPTS)}}})();
</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    assets = resources.files("orchestrator.search.report").joinpath("assets")
    return assets.joinpath(name).read_text(encoding="utf-8")


def _figures(summary: Mapping[str, Any], details: Details) -> Figure:
    """All that is drawn; None for a chart that the run has nothing for."""
    name = sections.metric_name(summary)
    curves = details.get("curves", {})
    drawn = {what: plots.curve_figure(curves, what, name) for what in ("loss", "metric")}
    return {
        "search": search_data(details, name) if summary.get("search") else None,
        "choosing": choosing.figure(details),
        "comparison": plots.comparison_figure(summary, name, details.get("larger_is_better", True)),
        "curves": {what: figure for what, figure in drawn.items() if figure is not None},
    }
