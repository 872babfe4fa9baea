"""How well single models and ensembles notice rows from elsewhere, side by side, as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.search.report import text
from orchestrator.search.report.members import ELSEWHERE
from orchestrator.search.report.text import safe

_BY = {"confidence": "top probability", "total": "entropy", "epistemic": "contradiction"}
_CAPTION = (
    '<p class="caption">The chance that a row from elsewhere is less sure than a test row (AUROC): '
    "0.5 is chance. By the top probability, by the entropy of the answer, and, of an ensemble, by how far "
    "its members contradict each other (mutual information). Below: the share of them that look as sure as "
    "95 % of test rows (FPR at 95 % recall). Bold, where there are "
    "validation rows of both kinds: the measure that tells them apart best.</p>"
)


def section(summary: Mapping[str, Any]) -> str:
    """A table with a row a model and ensemble; nothing where the summary does not know."""
    found = {key: item["elsewhere"] for key, item in summary.get("models", {}).items() if "elsewhere" in item}
    for key, item in summary.get("ensembles", {}).items():
        known = (item.get("uncertainty") or {}).get("elsewhere")
        if known:
            found[key] = known
    kinds = list(dict.fromkeys(kind for item in found.values() for kind in item))
    if not kinds:
        return ""
    head = "".join(
        f'<th scope="col" class="num">{ELSEWHERE.get(kind, safe(kind))}, by {how}</th>'
        for kind in kinds
        for how in _BY.values()
    )
    rows = "".join(
        f'<tr><th scope="row">{safe(key)}</th>'
        + "".join(
            f'<td class="num">{_cell(item.get(kind, {}), measure)}</td>' for kind in kinds for measure in _BY
        )
        + "</tr>"
        for key, item in found.items()
    )
    table = f'<table><thead><tr><th scope="col"></th>{head}</tr></thead><tbody>{rows}</tbody></table>'
    body = f'<h2>Rows from elsewhere</h2>{_CAPTION}<div class="scroll">{table}</div>'
    return f'<section id="elsewhere">{body}</section>'


def _cell(found: Mapping[str, Any], measure: str) -> str:
    rate = found.get("fpr95", {}).get(measure)
    auroc = text.number(found.get(measure))
    auroc = f"<strong>{auroc}</strong>" if found.get("by") == measure else auroc
    return auroc if rate is None else f"{auroc}<br><small>{text.metric(rate, 'accuracy')}</small>"
