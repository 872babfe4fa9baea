"""What a run leaves behind: `summary.json` for machines, and a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.measure.artifacts import Subject
from orchestrator.measure.machine import machine
from orchestrator.measure.promise import SAID
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.evaluation import Evaluation
from orchestrator.pipeline.searching import Found
from orchestrator.search.arms import EAGER, MEMBER
from orchestrator.search.objectives import TrialRow, front_of
from orchestrator.search.pareto import Point, hypervolume

SCHEMA = 1
_MEMBERS = "members: what their ensemble loses without them, and their share of what it knows (Shapley)"
TABLE_WIDTH = 118
"""When the output is no terminal."""


def summarize(
    run: Run, found: Found | None, evaluation: Evaluation, served: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The run summary (design: Run summary)."""
    searched = {
        "trials": len(found.rows) if found else 0,
        "front": evaluation.front,
        "chosen": evaluation.chosen,
        "reason": found.reason if found else None,
        "verdict": found.verdict.plain() if found and found.verdict else None,
        **(_beside(found) if found else {}),
    }
    return {
        "schema": SCHEMA,
        "run": run.config.name,
        "seed": run.config.seed,
        "seconds": round(run.progress.seconds, 1),
        "machine": machine(),
        "data": {"digest": run.dataset.digest, **run.dataset.facts},
        "models": evaluation.models,
        "search": searched,
        "ensembles": evaluation.ensembles,
        "serving": served,
    }


def _beside(found: Found) -> dict[str, Any]:
    """How long it took, how good the front is, what it has to beat, and what the choice costs elsewhere."""
    points = [Point(-row.drop, row.latency_ms, row.bytes) for row in found.front]
    return {
        "spent": found.spent.plain(),
        "hypervolume": hypervolume(points, parent_gain=0.0, parent_latency_ms=found.parent.latency_ms),
        "arms": [
            {"arm": row.arm, "name": row.name, "execution": row.execution, "status": row.status}
            | ({"drop": row.drop, "latency_ms": row.latency_ms, "bytes": row.bytes} if row.ok else {})
            for row in found.arms
        ],
        "targets": {name: _target(found, rows) for name, rows in found.elsewhere.items()},
    }


def _target(found: Found, rows: tuple[TrialRow, ...]) -> dict[str, Any]:
    """A further target's front, its own best, and how much slower the chosen variant is there than that.

    As in the search itself, the parent and the best other model are no variants.
    """
    variants = [row for row in rows if row.arm not in (EAGER, MEMBER)]
    feasible = [row for row in variants if row.feasible]
    best = min(feasible, key=lambda row: (row.latency_ms, row.drop), default=None)
    chosen = next(
        (row for row in rows if row.ok and found.chosen and row.number == found.chosen.number), None
    )
    return {
        "front": [row.name for row in front_of([row for row in variants if row.ok])],
        "best": best.name if best else None,
        "chosen_loss": chosen.latency_ms / best.latency_ms - 1 if chosen and best else None,
        "failed": {row.name: row.reason for row in rows if row.status == "failed"},
    }


def print_table(summary: dict[str, Any], folder: Path) -> None:
    """Every model, variant and ensemble with its test figures, and where the report is."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_WIDTH)
    entries = list(_entries(summary))
    measured_at = {_setting(figures["latency_ms"]) for _, _, figures in entries}
    table = Table(
        title=_title(summary["run"], measured_at),
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("")
    table.add_column("name", overflow="fold")
    for column in (summary_metric(summary), "95 % interval", "latency ms", "p95 ms", "bytes"):
        table.add_column(column, justify="right")
    if len(measured_at) > 1:
        table.add_column("rows on threads", justify="right")
    for kind, name, figures in entries:
        value, (low, high) = figures["metric"]["value"], figures["metric"]["ci"]
        time = figures["latency_ms"]
        table.add_row(
            kind,
            name,
            f"{value:.4f}",
            f"{low:.4f} to {high:.4f}",
            f"{time['median']:.3f} ({time['ci'][0]:.3f} to {time['ci'][1]:.3f})",
            "" if time.get("p95") is None else f"{time['p95']:.3f}",
            f"{figures['bytes']:,}",
            *([" on ".join(map(str, _setting(time)))] if len(measured_at) > 1 else []),
        )
    console.print(table)
    members = _members(summary)
    if members is not None:
        console.print()
        console.print(members)
    for line in _judged(summary):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print()
    if (reason := summary["search"]["reason"]) is not None:
        console.print(f"search: {reason}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {folder / 'report.html'}", highlight=False, markup=False, soft_wrap=True)


def _judged(summary: dict[str, Any]) -> Iterator[str]:
    """What each variant of the run file keeps and gains, against its parent."""
    for name, figures in summary["models"].items():
        verdict, gate = figures.get("verdict"), figures.get("gate")
        if verdict is not None:
            said = f"{SAID[verdict['status']]} ({verdict['reason']})"
            yield f"\n{name}, of {figures['parent']}: on the contract part {said}"
        if gate is not None:
            said = "passes it" if gate["passes"] else "marks it REFUSED"
            yield f"{name}: the gate {said}: {gate['reason']}"


def _members(summary: dict[str, Any]) -> Table | None:
    """What each ensemble's members contribute to it; None where the summary does not say."""
    found = {
        name: figures["contributions"]["members"]
        for name, figures in summary["ensembles"].items()
        if "contributions" in figures
    }
    measures = [
        measure
        for measure in ("accuracy", "subset_accuracy", "nll", "squared_error")
        if any(measure in member for members in found.values() for member in members)
    ]
    if not found:
        return None
    table = Table(title=_MEMBERS, title_justify="left", box=None, pad_edge=False)
    table.add_column("ensemble", overflow="fold")
    table.add_column("member", overflow="fold")
    titles = [f"{measure} {what}" for measure in measures for what in ("lost without", "share")]
    for title in ("weight", summary_metric(summary), *titles):
        table.add_column(title, justify="right")
    for name, members in found.items():
        for member in members:
            shown = [member["weight"], member["metric"]]
            for measure in measures:
                part = member.get(measure, {})
                shown += [part.get("leave_one_out"), part.get("shapley")]
            table.add_row(name, member["name"], *("" if value is None else f"{value:.4f}" for value in shown))
    return table


def summary_metric(summary: dict[str, Any]) -> str:
    """Name of the run's metric, without a module path."""
    name: str = next(iter(summary["models"].values()))["metric"]["name"]
    return name.rpartition(":")[2]


def _entries(summary: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    students = {
        student for figures in summary["ensembles"].values() for student in figures.get("students", ())
    }
    for name, figures in summary["models"].items():
        if name not in students:  # it stands beside its ensemble
            yield "model", name, figures
    chosen = summary["search"]["chosen"]
    for figures in summary["search"]["front"]:
        mark = "chosen" if chosen and subject_of(chosen) == subject_of(figures) else "variant"
        yield mark, figures["name"], figures
    if chosen and subject_of(chosen) not in map(subject_of, summary["search"]["front"]):
        yield "chosen", chosen["name"], chosen
    for name, figures in summary["ensembles"].items():
        yield "ensemble", name, figures
        for student in figures.get("students", ()):
            yield f"as one: {name}", student, summary["models"][student]


def subject_of(point: Mapping[str, Any]) -> Subject:
    """Which artifact a point of the front is, and how it runs: names may be alike."""
    return point["digest"], point["execution"]


def _setting(latency: dict[str, Any]) -> tuple[int, int]:
    return latency.get("batch", 1), latency.get("threads", 1)


def _title(run: str, measured_at: set[tuple[int, int]]) -> str:
    """With rows and threads where they are those of every latency: a search may have its own."""
    if len(measured_at) > 1:
        return f"{run}: test figures"
    ((batch, threads),) = measured_at
    return f"{run}: test figures; latency of {batch} rows on {threads} thread(s)"
