"""The page's part about `orchestrator choose`: the front of ensembles and models, and what was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.search.report import text
from orchestrator.search.report.plots import Figure
from orchestrator.search.report.schema import Details
from orchestrator.search.report.text import safe

_HEAD = ("", "drop", "test", "shifted rows", "latency", "99th percentile", "per million", "bytes", "models")


def section(details: Details) -> str:
    """Reason, chart and table; nothing when nothing was chosen among."""
    found = details.get("choosing")
    if not found:
        return ""
    held = found["recommended"] is not None
    rows = "".join(_row(found, place, point) for place, point in enumerate(found["points"]))
    head = [_HEAD[0], text.metric_label(found["metric"]), *_HEAD[1:]]
    titles = "".join(
        f'<th scope="col"{" class=num" if place else ""}>{title}</th>' for place, title in enumerate(head)
    )
    notes = "".join(f"<li>{safe(note)}</li>" for note in found["notes"])
    return (
        '<section id="choosing"><h2>Choosing</h2>'
        f'<p class="caption">{_caption(found)}</p>'
        f'<div class="promise {"kept" if held else "broken"}" role="status"><p><strong>'
        f"{'Chosen:' if held else 'Nobody reaches the goal:'}</strong> {safe(found['reason'])}.{_spec(found)}"
        '</p></div><div id="choosing-plot" class="plot"></div><ul id="choosing-key" class="key"></ul>'
        '<div class="scroll"><table id="choosing-table" class="trials">'
        f"<thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table></div>"
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
        + "</section>"
    )


def figure(details: Details) -> Figure | None:
    """What the chart draws: a point a row of the table."""
    found = details.get("choosing")
    if not found:
        return None
    name = found["metric"]
    return {
        "title": f"{text.metric_name(name)} on validation",
        "percent": name in text.SHARES,
        "points": [
            {
                "latency": point["latency_ms"],
                "value": point["metric"]["value"],
                "ci": point["metric"]["ci"],
                "kind": _kind(found, place, point),
                "lines": _lines(name, point),
            }
            for place, point in enumerate(found["points"])
        ],
    }


def _caption(found: Mapping[str, Any]) -> str:
    goal = ", ".join(f"{key} {value}" for key, value in found["goal"].items())
    return (
        f"{found['candidates']:,} candidates, single models, means, mixes and cascades over the run&rsquo;s "
        "models and variants, "
        f"{safe(f'for {goal}' if goal else 'without a bound')}. The metric is on validation rows that "
        "nothing of a candidate was fitted on, with 95&nbsp;% intervals; a drop is against "
        f"{safe(found['reference'])}. Latencies are expected from those of the members; shifted rows are "
        "noisy, blurred or incomplete ones. Click a point or a row."
    )


def _spec(found: Mapping[str, Any]) -> str:
    spec = found["spec"]
    if not spec:
        return ""
    how = f"orchestrator serve {spec['ref']} --placement {spec.get('placement', 'fused')}"
    return f" Serve it: <code>{safe(how)}</code>"


def _kind(found: Mapping[str, Any], place: int, point: Mapping[str, Any]) -> str:
    if place == found["recommended"]:
        return "chosen"
    if point["baseline"]:
        return "baseline"
    return "single model" if point["kind"] == "member" else "ensemble"


def _lines(name: str, point: Mapping[str, Any]) -> list[str]:
    value, span = (
        text.metric(point["metric"]["value"], name),
        text.metric_interval(point["metric"]["ci"], name),
    )
    return [
        point["name"],
        point["baseline"],
        f"{text.metric_name(name)} {value} ({span})",
        f"{text.milliseconds(point['latency_ms'])} for {point['batch']} rows, {point['placement']}",
        text.size(point["bytes"]),
    ]


def _row(found: Mapping[str, Any], place: int, point: Mapping[str, Any]) -> str:
    name = found["metric"]
    kind = _kind(found, place, point)
    tags = [tag for tag in ("chosen" if kind == "chosen" else "", point["baseline"]) if tag]
    shown = "".join(
        f'<span class="tag {"chosen" if tag == "chosen" else "plain"}">{safe(tag)}</span>' for tag in tags
    )
    drop = point["drop"]["value"] * (100 if name in text.SHARES else 1)
    cells = (
        _measured(point["metric"], name),
        f"{drop:+.2f}<small>{text.metric_interval(point['drop']['ci'], name)}</small>",
        _measured(point["test"], name),
        text.metric(point["robustness"], name),
        f"{text.milliseconds(point['latency_ms'])}<small>{point['batch']} rows, {point['placement']}</small>",
        text.milliseconds(point["p99_ms"]),
        text.number(point["cost_per_million"]),
        text.size(point["bytes"]),
        str(point["models_per_answer"]),
    )
    body = "".join(f'<td class="num">{cell}</td>' for cell in cells)
    return f'<tr tabindex="0"><td>{safe(point["name"])}{shown}</td>{body}</tr>'


def _measured(figure: Mapping[str, Any], name: str) -> str:
    return f"{text.metric(figure['value'], name)}<small>{text.metric_interval(figure['ci'], name)}</small>"
