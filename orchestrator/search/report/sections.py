"""The report's sections. Each returns HTML, or nothing when the run has no such part."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from orchestrator.search.report import text
from orchestrator.search.report.plots import SERIES
from orchestrator.search.report.schema import Details, Searched, TrialPoint
from orchestrator.search.report.targets import is_chosen
from orchestrator.search.report.text import safe

_KINDS = {"sequential": "cascade", "stacking": "stack", "weighted_mix": "weighted mix"}


def metric_name(summary: Mapping[str, Any]) -> str:
    """Name of the run's metric."""
    for group in ("models", "ensembles"):
        for item in summary.get(group, {}).values():
            return str(item["metric"]["name"])
    return str(summary.get("metric", "accuracy"))


def header(summary: Mapping[str, Any], details: Details) -> str:
    """Title, one line about the run, and the facts to remember."""
    search = summary.get("search") or {}
    parts = [
        _count(len(summary.get("models", {})), "model"),
        _count(int(search.get("trials") or 0), "search trial"),
        _count(len(summary.get("ensembles", {})), "ensemble"),
        f"{text.duration(summary['seconds'])} of work",
    ]
    line = ", ".join(part for part in parts if part)
    tiles = "".join(
        f'<div class="tile"><div class="label">{label}</div><div class="value">{value}</div>'
        f'<div class="note">{note}</div></div>'
        for label, value, note in _tiles(summary, details)
    )
    return (
        f'<header><h1>{safe(summary["run"])}</h1><p class="lead">{safe(line)}</p></header>'
        f'\n<div class="tiles">{tiles}</div>'
    )


def promise(summary: Mapping[str, Any]) -> str:
    """Whether a variant keeps the promise, in one sentence; without a search there is none to keep."""
    search = summary.get("search")
    if not search or search.get("reason") is None:
        return ""
    chosen = search.get("chosen")
    head = "The promise holds:" if chosen else "No variant was chosen:"
    if "best" in search:  # a search over trainings promises nothing
        chosen = search["best"]
        head = "The best model:" if chosen else "No better model:"
    return (
        f'<div class="promise {"kept" if chosen else "broken"}" role="status">'
        f"<p><strong>{head}</strong> {_sentence(search.get('reason', ''))}</p></div>"
    )


def notes(details: Details) -> str:
    items = "".join(f"<li>{safe(note)}</li>" for note in details.get("notes", []))
    return _section("Notes", "", f'<ul class="notes">{items}</ul>') if items else ""


def models(summary: Mapping[str, Any], details: Details) -> str:
    """Every model, the chosen variant and every ensemble."""
    name = metric_name(summary)
    ensembles = summary.get("ensembles", {})
    taught = {student for item in ensembles.values() for student in item.get("students", ())}
    rows: list[tuple[str, str, Mapping[str, Any]]] = [
        (key, "model", item) for key, item in summary.get("models", {}).items() if key not in taught
    ]
    chosen = (summary.get("search") or {}).get("chosen")
    if chosen and "metric" in chosen:
        rows.append((str(chosen["name"]), "chosen variant", chosen))
    for key, item in ensembles.items():
        rows.append((key, _kind(item, key in details.get("stages", {})), item))
        rows += [
            (student, f"student of {key}", summary["models"][student]) for student in item.get("students", ())
        ]
    if not rows:
        return ""
    better = max if details.get("larger_is_better", True) else min
    best = better(item["metric"]["value"] for _, _, item in rows)
    classify = any(item.get("nll") is not None for _, _, item in rows)
    head = ["", text.metric_label(name), "latency", "bytes"] + (["NLL", "ECE"] if classify else []) + ["cost"]
    settings = {_setting(latency) for _, _, item in rows if (latency := item.get("latency_ms"))}
    body = "".join(
        _model_row(key, kind, item, name, classify, item["metric"]["value"] == best, len(settings) > 1)
        for key, kind, item in rows
    )
    caption = (
        f"Measured on the test part, with 95&nbsp;% intervals. {_latency_caption(settings)} "
        "Cost is the expected share of all members&rsquo; operations that one row needs. "
        f"The row with the best {text.metric_label(name)} is bold."
    )
    return _section("Models and ensembles", caption, _table(head, body))


def _kind(item: Mapping[str, Any], staged: bool) -> str:
    # Summaries of before do not tell the policy: what has no stages was a stack, mostly.
    kind: str = item["kind"] if item["kind"] != "sequential" or staged else item.get("policy", "stacking")
    return _KINDS.get(kind, kind)


def comparison(drawn: bool) -> str:
    if not drawn:
        return ""
    return _section(
        "Ensembles against every single model",
        "Test part, 95&nbsp;% intervals. The dashed line marks the best single model.",
        _chart("comparison", "Metric with interval of every model and ensemble, as in the table above"),
    )


def combination(details: Details) -> str:
    """How ensembles come to their answers: cascade exits and mix weights."""
    stages, weights = details.get("stages", {}), details.get("weights", {})
    bars = [
        _bar(name, shares, stages.get(name) or [f"stage {place + 1}" for place in range(len(shares))])
        for name, shares in details.get("exits", {}).items()
    ]
    bars += [_bar(name, list(mix.values()), list(mix)) for name, mix in weights.items()]
    caption = (
        "Of a cascade: the share of the test rows that each stage answers. "
        "Of a weighted mix: the weight of each member."
    )
    return _section("How the ensembles decide", caption, "".join(bars)) if bars else ""


def training(drawn: bool) -> str:
    if not drawn:
        return ""
    charts = _chart("loss", "Training loss by epoch") + _chart("metric", "Validation metric by epoch")
    return _section("Training", "", f'<div class="pair">{charts}</div>')


def serving(summary: Mapping[str, Any]) -> str:
    """What real requests saw."""
    served = summary.get("serving") or {}
    if not served:
        return ""
    name = metric_name(summary)
    body = "".join(
        f"<tr><td>{safe(key)}<small><code>{safe(item.get('url', ''))}</code></small></td>"
        + _cells(
            f"{item.get('requests', 0):,}",
            f"{item.get('errors', 0):,}",
            text.milliseconds(item.get("p50_ms")),
            text.milliseconds(item.get("p99_ms")),
            text.number(item.get("per_s")),
            text.metric(item.get("accuracy"), "accuracy" if name in text.SHARES else name),
        )
        + "</tr>"
        for key, item in served.items()
    )
    head = ["", "requests", "errors", "median", "99th percentile", "requests/s", "accuracy"]
    caption = "Real HTTP requests; the answers were compared with in-process ones."
    return _section("Serving", caption, _table(head, body))


def facts(summary: Mapping[str, Any]) -> str:
    """Data and machine."""
    parts = []
    for title, values in (("Data", summary.get("data")), ("Machine", summary.get("machine"))):
        if values:
            rows = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in text.facts(values))
            parts.append(f"<div><h2>{title}</h2><dl>{rows}</dl></div>")
    return f'<section><div class="pair">{"".join(parts)}</div></section>' if parts else ""


def run_file(details: Details) -> str:
    config = details.get("config")
    if not config:
        return ""
    return (
        "<section><details><summary>Run file, with every default</summary>"
        f"<pre><code>{safe(config)}</code></pre></details></section>"
    )


def _tiles(summary: Mapping[str, Any], details: Details) -> list[tuple[str, str, str]]:
    name, found = metric_name(summary), []
    better = max if details.get("larger_is_better", True) else min
    for label, group in (("Best single model", "models"), ("Best ensemble", "ensembles")):
        items = summary.get(group, {})
        if items:
            key = better(items, key=lambda key: items[key]["metric"]["value"])
            quality = items[key]["metric"]
            note = f"{safe(key)}, {text.metric_label(name)} {text.metric_interval(quality.get('ci'), name)}"
            found.append((label, text.metric(quality["value"], name), note))
    found += _chosen_tile(summary, details)
    served = summary.get("serving") or {}
    if served:
        key = min(served, key=lambda key: served[key]["p50_ms"])
        note = f"{safe(key)}, median answer; {text.number(served[key].get('per_s'))} requests/s"
        found.append(("Fastest served", text.milliseconds(served[key]["p50_ms"]), note))
    return found


def _chosen_tile(summary: Mapping[str, Any], details: Details) -> list[tuple[str, str, str]]:
    """Speed and size of the chosen variant against its parent."""
    chosen = (summary.get("search") or {}).get("chosen")
    if not chosen:
        return []
    empty: TrialPoint = {}
    nothing: Searched = {}
    first = next(iter(details.get("targets", {}).values()), nothing)
    trial = next((item for item in first.get("trials", []) if is_chosen(item, first)), empty)
    own, before = trial.get("bytes"), first.get("parent", empty).get("bytes")
    said = [f"{own / before:.0%} of the bytes"] if own and before else []
    speedup = trial.get("speedup")
    value = f"{text.number(speedup)}\u00d7 as fast" if speedup else safe(chosen["name"])
    return [("Chosen variant", value, ", ".join([safe(chosen["name"]), *said]))]


def _model_row(
    key: str, kind: str, item: Mapping[str, Any], name: str, classify: bool, best: bool, settings_differ: bool
) -> str:
    quality, latency = item["metric"], item.get("latency_ms") or {}
    cells = [
        _stacked(text.metric(quality["value"], name), text.metric_interval(quality.get("ci"), name)),
        _stacked(text.milliseconds(latency.get("median")), _span(latency, settings_differ)),
        text.size(item.get("bytes")),
    ]
    if classify:
        cells += [text.number(item.get("nll")), text.number(item.get("ece"))]
    cost = item.get("mean_cost")
    cells.append(text.NONE if cost is None else f"{100 * cost:.0f}\u00a0%")
    execution = f", {safe(latency['execution'])}" if latency.get("execution") else ""
    return (
        f"<tr{' class=best' if best else ''}><td>{safe(key)}<small>{safe(kind)}{execution}</small></td>"
        f"{_cells(*cells)}</tr>"
    )


def _setting(latency: Mapping[str, Any]) -> str:
    """Batch and threads in words."""
    return f"batch {latency.get('batch')} on {_count(int(latency.get('threads') or 1), 'thread')}"


def _latency_caption(settings: Collection[str]) -> str:
    """With batch and threads when all rows share them; else each says its own."""
    if not settings:
        return ""
    at = f" at {next(iter(settings))}" if len(settings) == 1 else ""
    return f"Latency is the median{at}, p95 the 95th percentile of calls."


def _span(latency: Mapping[str, Any], settings_differ: bool) -> str:
    """The interval of a median, the 95th percentile where it is known, and at what batch if rows differ."""
    p95 = latency.get("p95")
    told = [text.interval(latency.get("ci")), "" if p95 is None else f"p95 {text.number(p95)}"]
    told += [_setting(latency)] if latency and settings_differ else []
    return ", ".join(filter(None, told))


def _bar(name: str, shares: Sequence[float], labels: Sequence[str]) -> str:
    colors = [f"var({SERIES[index % len(SERIES)]})" for index in range(len(shares))]
    pieces = "".join(
        f'<span style="flex:{max(share, 0.0):.6f};background:{color}"></span>'
        for share, color in zip(shares, colors, strict=True)
    )
    key = "".join(
        f'<li><i style="background:{color}"></i>{safe(label)} <b>{100 * share:.1f}\u00a0%</b></li>'
        for label, share, color in zip(labels, shares, colors, strict=True)
    )
    bar = f'<div class="bar" aria-hidden="true">{pieces}</div>'
    return f'<h3>{safe(name)}</h3>{bar}<ul class="key">{key}</ul>'


def _section(title: str, caption: str, body: str) -> str:
    said = f'<p class="caption">{caption}</p>' if caption else ""
    return f"<section><h2>{title}</h2>{said}{body}</section>"


def _table(head: Sequence[str], body: str) -> str:
    titles = "".join(
        f'<th scope="col"{" class=num" if index else ""}>{title}</th>' for index, title in enumerate(head)
    )
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _chart(identifier: str, description: str) -> str:
    return f'<div class="plot" id="{identifier}" role="group" aria-label="{description}"></div>'


def _cells(*values: str) -> str:
    return "".join(f'<td class="num">{value}</td>' for value in values)


def _stacked(value: str, below: str) -> str:
    return f"{value}<small>{below}</small>" if below else value


def _sentence(reason: str) -> str:
    said = safe(reason.strip())
    return said if said.endswith(".") or not said else f"{said}."


def _count(count: int, what: str) -> str:
    return "" if count == 0 else f"{count} {what}{'' if count == 1 else 's'}"
