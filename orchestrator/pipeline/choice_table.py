"""What `orchestrator choose` found, as a table for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.pipeline.context import run_folder

TABLE_WIDTH = 170
"""When the output is no terminal."""


def print_choice(document: dict[str, Any], store: str | None) -> None:
    """The front, the baselines and the recommended; why it is that; where it is."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_WIDTH)
    table = Table(title=_title(document), title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("what answers", overflow="fold", min_width=24)
    for column in (
        "metric",
        "drop",
        "on test",
        "shifted",
        "ms a call",
        "p99",
        "per million",
        "bytes",
        "runs",
    ):
        table.add_column(column, justify="right")
    for place, point in enumerate(document["points"]):
        table.add_row(*_cells(document, place, point))
    console.print(table)
    said = [document["reason"], *document["notes"]]
    if document["spec"]:
        ref, found = document["spec"]["ref"], document["spec"]["fused_ms"]
        low, high = found["ci"]
        said.append(f"measured whole in one process: {found['median']:.3f} ms ({low:.3f} to {high:.3f})")
        said.append(f"serve it with: orchestrator serve {ref} --placement {document['spec']['placement']}")
    said.append(f"written: {run_folder(document['run'], store) / 'choose.json'}")
    for line in said:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _title(document: dict[str, Any]) -> str:
    goal = (
        ", ".join(f"{name} {value}" for name, value in document["goal"].items())
        or "no bound: the best metric"
    )
    return (
        f"{document['run']}: {document['candidates']} candidates for {goal}; {document['metric']} on "
        f"validation rows that nothing was fitted on, drop against {document['reference']}"
    )


def _cells(document: dict[str, Any], place: int, point: dict[str, Any]) -> list[str]:
    best = "chosen" if document["recommended"] is not None else "nearest"
    marks = [best if place == document["nearest"] else "", point["baseline"]]
    return [
        ", ".join(mark for mark in marks if mark) or "front",
        escape(point["name"]),
        f"{point['metric']['value']:.4f} ({_span(point['metric']['ci'])})",
        f"{point['drop']['value']:+.4f} ({_span(point['drop']['ci'])})",
        f"{point['test']['value']:.4f}",
        f"{point['robustness']:.4f}",
        f"{point['latency_ms']:.3g}",
        f"{point['p99_ms']:.3g}",
        f"{point['cost_per_million']:.3g}",
        f"{point['bytes']:,}",
        f"{point['placement']} x{point['batch']}",
    ]


def _span(ci: list[float]) -> str:
    return f"{ci[0]:.3f} to {ci[1]:.3f}"
