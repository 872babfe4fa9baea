"""`orchestrator explain`: one row of a run's data, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.config.data import PartName
from orchestrator.pipeline.context import open_run
from orchestrator.pipeline.explaining import explained_with_image
from orchestrator.pipeline.run import read_config
from orchestrator.pipeline.summary import TABLE_WIDTH
from orchestrator.progress import Progress

_SHADES = " .:-=+*#%@"
"""From no drop to the largest."""


def explain_file(
    config: str,
    ensemble: str,
    row: int,
    *,
    part: PartName = "test",
    store: str | None = None,
    overrides: Sequence[str] = (),
    data: str | None = None,
) -> dict[str, Any]:
    """Why a fitted ensemble of a run file answers a row as it does.

    Args:
        config: run file, or the name of the embedded one.
        ensemble: its name in the run.
        row: number of the row in its part.
        part: of the data.
        store: path or URI of the store.
        overrides: settings to change first.
        data: folder of the run's data files.

    Returns:
        `run`, `ensemble`, `part`, and what `explained_with_image` says.

    Raises:
        ConfigError: there is no such row.
        NotFoundError: the run has no fitted ensemble of that name.
    """
    settings = read_config(config, overrides, data)
    run = open_run(settings, store=store, progress=Progress(), cluster=lambda: None)
    spec = run.store.spec(f"{settings.name}/{ensemble}")
    found = explained_with_image(run, spec, part, row)
    return {"run": settings.name, "ensemble": ensemble, "part": part, **found}


def print_explanation(document: dict[str, Any]) -> None:
    """Who said what as a table, then who decided it, then where the ensemble looked."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_WIDTH)
    table = Table(box=None, pad_edge=False)
    for column in ("member", "says", "probability", "weight", "without it"):
        table.add_column(column, justify="left" if column in ("member", "says") else "right")
    for cells in _rows(document):
        table.add_row(*map(escape, cells))
    said, truth = _said(document["answer"]), _said(document["truth"])
    head = f"{document['ensemble']} says {said}; true is {truth} ({document['part']} row {document['row']}"
    lines = [f"{head}, row {document['id']} of the source)"]
    if document["stage"] is not None:
        lines.append(f"it left the cascade at stage {document['stage'] + 1}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    for line in (*decided(document), *_map(document.get("occlusion"))):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def decided(document: dict[str, Any]) -> list[str]:
    """Sentences about who would have to be missing for another answer."""
    flips = document["flips"]
    if flips is None:
        return []
    if not flips:
        return ["whoever is missing, the answer stays"]
    return [f"without {' and '.join(flip['without'])} it would be {flip['answer']}" for flip in flips]


def _rows(document: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The ensemble, and below it all that stands in it."""
    yield _row(document["said"], 0)
    without = document["without"] or []
    for position, member in enumerate(document["said"].get("members", ())):
        yield from _nested(member, 1, _figure(without[position]) if without else "")


def _nested(node: dict[str, Any], depth: int, without: str = "") -> Iterator[tuple[str, ...]]:
    yield _row(node, depth, without)
    for below in node.get("members", ()):
        yield from _nested(below, depth + 1)


def _row(node: dict[str, Any], depth: int, without: str = "") -> tuple[str, ...]:
    return (
        f"{'  ' * depth}{node['name']}{'' if node['asked'] else ' (not asked)'}",
        _said(node["answer"]),
        "" if node["probability"] is None else _figure(node["probability"]),
        "" if node["weight"] is None else _figure(node["weight"]),
        without,
    )


def _figure(value: float | list[float] | None) -> str:
    if value is None:
        return "no answer"
    return f"{value:.3f}" if isinstance(value, float) else _said(value)


def _said(answer: str | list[float]) -> str:
    return answer if isinstance(answer, str) else ", ".join(f"{value:.4g}" for value in answer)


def _map(occlusion: dict[str, Any] | None) -> Iterator[str]:
    """The occlusion map in characters, two a place so that it is about square."""
    if occlusion is None:
        return
    most = max((value for row in occlusion["drop"] for value in row), default=0.0)
    side = occlusion["patch"]
    yield f"probability lost when {side} x {side} pixels are hidden there, up to {most:.3f} (darkest):"
    for row in occlusion["drop"]:
        shades = (max(value, 0.0) / most if most > 0 else 0.0 for value in row)
        yield "".join(2 * _SHADES[round(shade * (len(_SHADES) - 1))] for shade in shades)
