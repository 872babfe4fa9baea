"""The search's part of the page as HTML: places for the charts, importances, and what was not feasible."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from orchestrator.search.importance import constant, importance
from orchestrator.search.report import text
from orchestrator.search.report.schema import Details, Searched, TrialPoint
from orchestrator.search.report.targets import finished, gain, number
from orchestrator.search.report.text import safe

_EXAMPLES = 3
_SMALLEST_SHARE = 0.005


def section(summary: Mapping[str, Any], details: Details, name: str) -> str:
    """The whole section; a short one when no trial is known.

    Args:
        summary: the run summary.
        details: the run's details.
        name: the metric's name.
    """
    if not summary.get("search"):
        return ""
    targets = {key: found for key, found in details.get("targets", {}).items() if found.get("trials")}
    if not targets:
        return "<section><h2>Search</h2><p class=caption>No trial was recorded.</p></section>"
    parts = (
        "<h2>Search</h2>",
        f'<p class="caption">{_caption(details)}{_paused(summary)}</p>',
        '<noscript><p class="caption">The charts and the table of trials need scripts.</p></noscript>',
        _switch(targets),
        _FRONT,
        _PARALLEL,
        _TRIALS,
        _progress(targets, details, name),
        _missing(targets),
    )
    return f'<section id="search">{"".join(part for part in parts if part)}</section>'


def _caption(details: Details) -> str:
    drop = details.get("max_drop")
    allowed = "" if drop is None else f" The dashed line is the allowed drop of {drop:g}."
    return (
        "Each point is one variant in the execution that it would be served in. Quality is on the validation "
        "part; latency was measured beside the parent in eager fp32, with 95&nbsp;% intervals. The front is "
        "what no other variant beats in quality, latency and bytes at once; its knee is where leaving it in "
        f"either direction costs most.{allowed}"
    )


def _paused(summary: Mapping[str, Any]) -> str:
    """How long no trial ran because latencies were measured; nothing where that was not noted."""
    spent = summary["search"].get("spent") or {}
    if not spent.get("seconds"):
        return ""
    return (
        f" Trials paused {text.duration(spent['paused_s'])} of {text.duration(spent['seconds'])} "
        f"({spent['paused_share']:.0%}) while latencies were measured."
    )


def _switch(targets: Mapping[str, Searched]) -> str:
    """Buttons to choose a target, and what its latencies were measured on."""
    said = "".join(
        f'<p class="caption" data-target="{safe(name)}"{_hidden(place)}>{safe(setting)}</p>'
        for place, (name, found) in enumerate(targets.items())
        if (setting := found.get("setting"))
    )
    if len(targets) < 2:
        return said
    buttons = "".join(
        f'<button type="button" value="{safe(name)}" aria-pressed="{str(place == 0).lower()}">'
        f"{safe(name)}</button>"
        for place, name in enumerate(targets)
    )
    return f'<div id="targets" class="switch" role="group" aria-label="Target">{buttons}</div>{said}'


_FRONT = (
    '<div class="beside"><div><div id="front" class="plot"></div><p id="front-note" class="caption"></p>'
    '<ul id="front-key" class="key"></ul></div><div><aside id="detail" aria-label="Selected trial">'
    "</aside></div></div>"
    '<p id="said" class="unseen" role="status"></p>'
)
_PARALLEL = (
    '<div id="settings-part"><h3>Settings and what they brought</h3>'
    '<p class="caption">One line a trial: the best fifth in the strongest colour, failed ones red. Drag '
    "along an axis to keep only the trials that pass there; the table and the points above follow.</p>"
    '<div id="parallel" class="scroll"></div><div id="chips"></div></div>'
)
_TRIALS = (
    "<h3>Trials</h3>"
    '<div class="tools"><input id="filter" type="search" aria-label="Filter trials" autocomplete="off" '
    'placeholder="Filter: words, or latency&lt;3"><label><input id="settings" type="checkbox"> '
    'settings</label><span id="count" role="status"></span><span id="pager" class="pager"></span></div>'
    '<div class="scroll"><table id="trials" class="trials"></table></div>'
)


def _progress(targets: Mapping[str, Searched], details: Details, name: str) -> str:
    shares = "".join(
        f'<div data-target="{safe(target)}"{_hidden(place)}>{_importances(found, details, name)}</div>'
        for place, (target, found) in enumerate(targets.items())
    )
    volume = (
        '<div class="volume"><h3>Hypervolume <span id="volume-over" class="switch small" role="group" '
        'aria-label="Horizontal axis"></span></h3><p class="caption">How much the front covers of the area '
        "between a reference point (0.10 below the parent&rsquo;s metric, the parent&rsquo;s latency) and "
        "the far corner (0.10 above, a hundredth of the latency), as the search went on.</p>"
        '<div id="volume" class="plot"></div></div>'
    )
    return f"{volume}<h3>What decided</h3>{shares}"


def _importances(searched: Searched, details: Details, name: str) -> str:
    """For each objective a bar a parameter, or the sentence why there is none."""
    larger = details.get("larger_is_better", True)
    ended = [searched["trials"][place] for place in finished(searched)]
    rows = [row for row in ended if not row.get("arm")]
    configs = [row.get("config", {}) for row in rows]
    losses = {
        text.metric_label(name): [-gain(row, larger) for row in rows],
        "latency": [row["latency_ms"] for row in rows],
        "bytes": [float(row.get("bytes", 0)) for row in rows],
    }
    caption = (
        '<p class="caption">How much each setting decides whether a trial is among the best tenth '
        "(PED-ANOVA), each looked at alone; what could be chance is left out. Shares of one objective add "
        "up to 100&nbsp;%.</p>"
    )
    known = {objective: importance(configs, values) for objective, values in losses.items()}
    reasons = {found.reason for found in known.values()}
    if len(reasons) == 1 and reasons != {""}:
        return f'<p class="caption">{safe(*reasons)}</p>{_constants(configs)}'
    parts = []
    for objective, found in known.items():
        body = _shares(found.shares) if found.shares else f'<p class="caption">{safe(found.reason)}</p>'
        parts.append(f"<div><h4>{objective}</h4>{body}</div>")
    return f'{caption}<div class="objectives">{"".join(parts)}</div>{_constants(configs)}'


def _shares(shares: Mapping[str, float]) -> str:
    """A bar for each parameter of at least half a percent; the others by name."""
    large = {name: share for name, share in shares.items() if share >= _SMALLEST_SHARE}
    bars = "".join(_share(name, share) for name, share in large.items())
    small = ", ".join(safe(name) for name in shares if name not in large)
    rest = f'<p class="caption">Less than 0.5&nbsp;%: {small}.</p>' if small else ""
    return f'<ul class="shares">{bars}</ul>{rest}'


def _share(name: str, share: float) -> str:
    return (
        f'<li><span class="name" title="{safe(name)}">{safe(name)}</span><span class="track">'
        f'<i style="width:{100 * share:.1f}%"></i></span><b>{100 * share:.0f}\u00a0%</b></li>'
    )


def _constants(configs: Sequence[Mapping[str, Any]]) -> str:
    fixed = ", ".join(f"{safe(key)} {safe(value)}" for key, value in constant(configs).items())
    return (
        f'<p class="caption">With one value in all finished trials that have it: {fixed}.</p>'
        if fixed
        else ""
    )


def _missing(targets: Mapping[str, Searched]) -> str:
    """What was infeasible, failed or never measured, and why."""
    several = len(targets) > 1
    tables = [
        (place, name, _groups_table(searched["trials"], name if several else None))
        for place, (name, searched) in enumerate(targets.items())
    ]
    if not any(table for _, _, table in tables):
        return ""
    none = '<p class="caption">Every trial finished and is feasible.</p>'
    body = "".join(
        f'<div data-target="{safe(name)}"{_hidden(place)}>{table or none}</div>'
        for place, name, table in tables
    )
    return f"<h3>Not feasible, and why</h3>{body}"


def _groups_table(trials: Sequence[TrialPoint], target: str | None) -> str:
    rows = "".join(
        f'<tr><td class="num">{len(places)}</td><td>{safe(what)}</td><td class="wide">{safe(why)}</td>'
        f'<td class="wide">{_examples(trials, places, target)}</td></tr>'
        for (what, why), places in _groups(trials)
    )
    head = "<tr><th scope=col class=num>trials</th><th scope=col></th><th scope=col>why</th>"
    return (
        f'<div class="scroll"><table class="groups"><thead>{head}<th scope=col>for example</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        if rows
        else ""
    )


def _groups(trials: Sequence[TrialPoint]) -> list[tuple[tuple[str, str], list[int]]]:
    """((what, why), places), the largest group first; reasons that differ only in numbers are one."""
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for place, trial in enumerate(trials):
        status = trial.get("status", "failed")
        if status == "ok":
            reasons = [("not feasible", said) for said in trial.get("violations", ())]
        else:
            reasons = [(status, trial.get("reason") or "no reason was recorded")]
        for what, why in reasons:
            key = (what, re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", "#", why))
            found.setdefault(key, []).append((place, why))
    groups = [
        ((what, _said(members)), [place for place, _ in members]) for (what, _), members in found.items()
    ]
    return sorted(groups, key=lambda group: -len(group[1]))


def _said(members: Sequence[tuple[int, str]]) -> str:
    first = members[0][1]
    return first if all(why == first for _, why in members) else f"for example: {first}"


def _examples(trials: Sequence[TrialPoint], places: Sequence[int], target: str | None) -> str:
    links = []
    for place in places[:_EXAMPLES]:
        address = {} if target is None else {"target": target}
        query = urlencode({**address, "trial": number(trials[place], place)})
        links.append(f'<a href="#{safe(query)}">{safe(trials[place].get("name", "trial"))}</a>')
    more = f" and {len(places) - _EXAMPLES} more" if len(places) > _EXAMPLES else ""
    return ", ".join(links) + more


def _hidden(place: int) -> str:
    return " hidden" if place else ""
