"""The members of each ensemble as HTML: what they contribute, how they differ, doubts, and rows explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.search.report import examples, text
from orchestrator.search.report.schema import Details
from orchestrator.search.report.text import safe

Fact = tuple[str, str]
"""A term and what is said of it, as HTML."""
_MEASURES = (
    ("accuracy", "accuracy"),
    ("subset_accuracy", "subset accuracy"),
    ("nll", "NLL"),
    ("squared_error", "squared error"),
)
_MAPS = {
    "disagreement": ("Disagreement", "Share of the rows to which two members give different classes."),
    "kappa": ("Kappa", "Agreement beyond chance: 1 is agreement on every row, 0 that of chance."),
    "double_fault": (
        "Double fault",
        "Share of the rows that both answer wrong; in the diagonal a member&rsquo;s error.",
    ),
    "error_correlation": (
        "Error correlation",
        "How far two members&rsquo; errors come together: 1 always, 0 as by chance.",
    ),
}
_STRONGEST = 50
"""Percent of colour in the cell of the largest figure: text stays readable on it, light and dark."""
ELSEWHERE = {
    "uniform_noise": "uniform noise",
    "shuffled_pixels": "shuffled pixels",
    "elsewhere": "rows of another source",
}
"""Kinds of rows that are nothing like the data's."""
_CAPTION = (
    '<p class="caption">On the test part. <i>Without</i> is what the ensemble loses when that member is left '
    "out and the others&rsquo; weights are filled up to 1. <i>Share</i> is the member&rsquo;s mean gain over "
    "all orders of joining (Shapley); shares add up to what the ensemble is worth beyond knowing nothing. "
    "Accuracy in points, NLL in nats saved: more is better.</p>"
)


def section(summary: Mapping[str, Any], details: Details, name: str) -> str:
    """The whole section; nothing when the summary does not know of members.

    Args:
        summary: the run summary.
        details: the run's details.
        name: the metric's name.
    """
    found = {key: item for key, item in summary.get("ensembles", {}).items() if item.get("contributions")}
    if not found:
        return ""
    body = "".join(
        _ensemble(key, item, details.get("examples", {}).get(key, []), name) for key, item in found.items()
    )
    return f'<section id="members"><h2>Members of the ensembles</h2>{_CAPTION}{body}</section>'


def _ensemble(key: str, item: Mapping[str, Any], told: Sequence[Mapping[str, Any]], name: str) -> str:
    parts = (
        f"<h3>{safe(key)}</h3>",
        _contributions(item["contributions"]["members"], name),
        _students(item.get("students") or {}, name),
        _maps(item.get("diversity") or {}),
        _doubts(item),
        examples.rows(told),
    )
    return f'<div class="ensemble">{"".join(parts)}</div>'


def _contributions(members: Sequence[Mapping[str, Any]], name: str) -> str:
    gains = [
        (key, what, f"{title}: {said}")
        for key, title in _MEASURES
        if any(key in member for member in members)
        for what, said in (("leave_one_out", "without"), ("shapley", "share"))
    ]
    titles = ("weight", text.metric_label(name), *(title for _, _, title in gains))
    rows = ""
    for member in members:
        cells = [text.number(member["weight"]), text.metric(member["metric"], name)]
        cells += [_signed(member.get(key, {}).get(what), key) for key, what, _ in gains]
        rows += _row(member["name"], "".join(f'<td class="num">{cell}</td>' for cell in cells))
    return _table('<th scope="col">member</th>', titles, rows)


def _students(students: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """The single models that learned from the ensemble, and what is lost by taking one in its place."""
    rows = ""
    for student, found in students.items():
        drop = found["drop"]
        same = text.NONE if found["agreement"] is None else text.metric(found["agreement"], "accuracy")
        cells = (
            f"{text.metric(drop['value'], name)}<small>{text.metric_interval(drop['ci'], name)}</small>",
            same,
        )
        rows += _row(student, "".join(f'<td class="num">{cell}</td>' for cell in cells))
    if not rows:
        return ""
    titles = (f"drop in {text.metric_label(name)}", "same class")
    return "<h4>As one model</h4>" + _table('<th scope="col">student</th>', titles, rows)


def _table(corner: str, titles: Sequence[str], rows: str) -> str:
    head = "".join(f'<th scope="col" class="num">{title}</th>' for title in titles)
    table = f"<table><thead><tr>{corner}{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _row(name: str, cells: str) -> str:
    return f'<tr><th scope="row">{safe(name)}</th>{cells}</tr>'


def _signed(value: float | None, measure: str) -> str:
    """A gain with its sign; of an accuracy in percent points."""
    if value is None:
        return text.NONE
    shown = f"{100 * value:.2f}" if measure in text.SHARES else text.number(value)
    return f"+{shown}" if value > 0 else shown.replace("-", "\u2212", 1)


def _maps(diversity: Mapping[str, Any]) -> str:
    """A heat map a measure; a script shows one at a time."""
    names = diversity.get("members", ())
    maps = "".join(
        _map(title, said, names, diversity[key]) for key, (title, said) in _MAPS.items() if key in diversity
    )
    return f'<div class="maps"><h4>How the members differ</h4>{maps}</div>' if maps else ""


def _map(title: str, said: str, names: Sequence[str], matrix: Sequence[Sequence[float | None]]) -> str:
    pairs = [
        abs(value)
        for row, values in enumerate(matrix)
        for column, value in enumerate(values)
        if row != column and value is not None
    ]
    most = max(pairs, default=0.0) or 1.0
    rows = "".join(
        _row(name, "".join(_cell(value, most, own=row == column) for column, value in enumerate(values)))
        for row, (name, values) in enumerate(zip(names, matrix, strict=True))
    )
    table = _table("<td></td>", [safe(name) for name in names], rows)
    caption = f'<figcaption class="caption"><b>{title}.</b> {said}</figcaption>'
    return f'<figure class="heat" data-title="{title}">{caption}{table}</figure>'


def _cell(value: float | None, most: float, *, own: bool) -> str:
    shown = text.NONE if value is None else f"{value:.3f}"
    if own or value is None:
        return f'<td class="num own">{shown}</td>'
    colour = "--chosen" if value < 0 else "--accent"
    mixed = f"color-mix(in srgb, var({colour}) {_STRONGEST * abs(value) / most:.0f}%, transparent)"
    return f'<td class="num" style="background:{mixed}">{shown}</td>'


def _saved(loss: Mapping[str, Any]) -> Fact:
    parts = f"members {text.number(loss['members'])}, ensemble {text.number(loss['ensemble'])}"
    return (
        f"saved by combining, {dict(_MEASURES)[loss['name']]}",
        f"{text.number(loss['ambiguity'])}: {parts}",
    )


def _of_classes(uncertainty: Mapping[str, Any]) -> list[Fact]:
    aleatoric, epistemic = (text.number(uncertainty[key]) for key in ("aleatoric", "epistemic"))
    parts = f"{aleatoric} that each member has (aleatoric), {epistemic} by contradiction (epistemic)"
    return [
        ("doubt in nats", f"{text.number(uncertainty['total'])}: {parts}"),
        ("members against the answer", text.metric(uncertainty["dissent"], "accuracy")),
        ("Brier score", text.number(uncertainty["brier"])),
        ("AUROC of finding own errors", text.number(uncertainty["error_auroc"])),
    ]


def _of_elsewhere(kind: str, found: Mapping[str, Any]) -> Fact:
    by = {"confidence": "confidence", "total": "entropy", "epistemic": "contradiction"}
    figures = ", ".join(f"{text.number(found[key])} by {how}" for key, how in by.items())
    rate = found.get("fpr95", {}).get("confidence")
    if rate is not None:
        figures += f"; {text.metric(rate, 'accuracy')} look as sure as 95 % of test rows"
    return f"AUROC of finding {ELSEWHERE.get(kind, safe(kind))}", f"{figures} ({found['rows']:,} rows)"


_KEPT = ("accuracy_kept", "accuracy_rejected")


def _of_sets(item: Mapping[str, Any]) -> list[Fact]:
    """What prediction sets and intervals promise, and what came of it."""
    facts = []
    if "prediction_sets" in item:
        found = item["prediction_sets"]
        kept = f"{text.metric(found['covered'], 'accuracy')} of the rows"
        held = f"{kept} ({text.metric_interval(found['covered_ci'], 'accuracy')})"
        size = f"{found['mean_size']:.2f} classes on average, {text.metric(found['empty'], 'accuracy')} empty"
        asked = f"sets with the true class, {found['coverage']:.0%} promised ({safe(found['method'])})"
        facts.append((asked, f"{held}; {size}"))
    if "reject" in item:
        found = item["reject"]
        shares = [text.metric(found[key], "accuracy") if found[key] is not None else "none" for key in _KEPT]
        facts.append(
            (
                f"rejected for low {safe(found['by'])}, below {text.number(found['threshold'])}",
                f"{text.metric(found['rejected'], 'accuracy')} of the rows; "
                f"accuracy {shares[0]} of those kept, {shares[1]} of those rejected",
            )
        )
    if "intervals" in item:
        found = item["intervals"]
        kept = ", ".join(text.metric(value, "accuracy") for value in found["covered"])
        widths = ", ".join(text.number(value) for value in found["widths"])
        asked = f"intervals with the true value, {found['coverage']:.0%} promised"
        facts.append((asked, f"{kept} of the rows, by target; widths {widths}"))
    return facts


def _doubts(item: Mapping[str, Any]) -> str:
    """What combining saves, how unsure the ensemble is of what, and what it promises."""
    diversity, uncertainty = item.get("diversity") or {}, item.get("uncertainty") or {}
    facts = [_saved(diversity["loss"])] if "loss" in diversity else []
    if "total" in uncertainty:
        facts += _of_classes(uncertainty)
    if "spread" in uncertainty:
        values = ", ".join(text.number(value) for value in uncertainty["spread"])
        facts.append(("members&rsquo; spread, by target", values))
    facts += _of_sets(item)
    facts += [_of_elsewhere(kind, found) for kind, found in uncertainty.get("elsewhere", {}).items()]
    rows = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts)
    return f"<h4>What it saves, and its doubts</h4><dl>{rows}</dl>" if rows else ""
