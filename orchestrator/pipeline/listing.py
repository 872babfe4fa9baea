"""`orchestrator models`: what the store holds, and whether it is intact."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.errors import CorruptArtifactError
from orchestrator.pipeline.context import store_root
from orchestrator.store.store import Store


def list_models(prefix: str, *, store: str | None, verify: bool, as_json: bool) -> None:
    """Print every ref with its artifact or ensemble.

    Raises:
        CorruptArtifactError: `verify` found damage; all refs are printed first.
    """
    opened = Store(store_root(store), create=False)
    rows = [_row(opened, ref, verify) for ref in opened.refs(prefix)]
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        _print(rows)
    damaged = [row["ref"] for row in rows if row["state"] == "damaged"]
    if damaged:
        raise CorruptArtifactError("damaged", ", ".join(damaged), "run it again, or restore these artifacts")


def _row(store: Store, ref: str, verify: bool) -> dict[str, Any]:
    digest = store.ref(ref)
    row: dict[str, Any] = {"ref": ref, "digest": digest, "state": "unchecked"}
    if not store.has(digest):
        return {**row, "kind": store.spec(digest).tree.kind, "bytes": None, "state": "ok"}
    try:
        if verify:
            store.verify(digest)
            row["state"] = "ok"
        manifest = store.manifest(digest)
    except CorruptArtifactError:
        return {**row, "kind": "", "bytes": None, "state": "damaged"}
    plan = " > ".join(step.kind for step in manifest.plan)
    return {**row, "kind": f"{manifest.model.factory} {plan}".strip(), "bytes": store.artifact_bytes(digest)}


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("ref", "what", "bytes", "digest", "state"):
        table.add_column(column, justify="right" if column == "bytes" else "left")
    for row in rows:
        size = "" if row["bytes"] is None else f"{row['bytes']:,}"
        table.add_row(row["ref"], row["kind"], size, row["digest"][:12], row["state"])
    Console().print(table)
