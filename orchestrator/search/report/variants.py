"""The run file's own variants against their parents: the promise, the gate and the audit, as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.compression.audit import told
from orchestrator.measure.promise import SAID
from orchestrator.search.report import text
from orchestrator.search.report.text import safe

_CAPTION = (
    '<p class="caption">The promise is tested on the contract part, at a confidence that all variants of the '
    "run file share. The gate marks what is neither faster nor smaller than its parent; nothing is taken "
    "back. Peak memory is that of the activations of 32 rows.</p>"
)
_HEAD = ("", "promise", "gate", "audit, and what the steps reached")


def section(summary: Mapping[str, Any]) -> str:
    """A table with a row a variant; nothing where the summary knows none."""
    found = {key: item for key, item in summary.get("models", {}).items() if "parent" in item}
    if not found:
        return ""
    head = "".join(f'<th scope="col">{title}</th>' for title in _HEAD)
    rows = "".join(
        f'<tr><th scope="row">{safe(key)}<br><small>of {safe(item["parent"])}</small></th>'
        + "".join(f'<td class="wide">{cell}</td>' for cell in _cells(item))
        + "</tr>"
        for key, item in found.items()
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    body = f'<h2>Variants of the run file</h2>{_CAPTION}<div class="scroll">{table}</div>'
    return f'<section id="variants">{body}</section>'


def _cells(item: Mapping[str, Any]) -> tuple[str, ...]:
    verdict, gate, audit = item.get("verdict"), item.get("gate"), item.get("audit")
    return (
        _said(SAID[verdict["status"]], verdict["reason"]) if verdict else text.NONE,
        _said("passes" if gate["passes"] else "REFUSED", gate["reason"]) if gate else text.NONE,
        _facts(audit) if audit else text.NONE,
    )


def _said(what: str, why: str) -> str:
    return f"<strong>{safe(what)}</strong><br><small>{safe(why)}</small>"


def _facts(audit: Mapping[str, Any]) -> str:
    lines = [
        f"{audit['macs']:,} operations a row",
        f"{text.size(audit['peak_bytes'])} peak memory",
        f"{text.metric(audit['zeros'], 'accuracy')} of the weights are zero",
    ]
    if audit["masked_only"]:
        lines.append("masked only: it computes as much as its parent")
    lines += [
        f"{text.metric(audit[kind]['share'], 'accuracy')} of the products in {kind}"
        for kind in ("int8", "fp8")
        if audit[kind] is not None
    ]
    steps = [step for step in audit.get("decided", ()) if len(step) > 1]
    reached = [f"<strong>{safe(step['kind'])}</strong><small>{safe(told(step))}</small>" for step in steps]
    return "<br>".join([*lines, "".join(reached)])
