"""`orchestrator models`: what the store holds, and whether it is intact."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.errors import CorruptArtifactError, NotFoundError, StoreError
from orchestrator.pipeline.context import store_root
from orchestrator.store import releases
from orchestrator.store.names import is_digest
from orchestrator.store.store import Store

_BAD = "the store does not hold all that its refs name"


def list_models(prefix: str, *, store: str | None, verify: bool, as_json: bool) -> StoreError | None:
    """Print every ref with its artifact or ensemble, and what is wrong with it.

    Returns:
        What to tell of damaged or missing ones; None when there are none.

    Raises:
        NotFoundError: there is no store, or no ref begins so.
    """
    opened = Store(store_root(store), create=False)
    found = [_row(opened, ref, verify) for ref in beginning_with(opened, prefix)]
    rows = [row for row in found if row is not None]
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        _print(rows)
    bad = [f"{row['ref']} ({row['state']})" for row in rows if row["state"] in ("damaged", "missing")]
    return CorruptArtifactError(_BAD, ", ".join(bad), "run them again, or restore them") if bad else None


def beginning_with(store: Store, prefix: str) -> list[str]:
    """Sorted names of the refs that begin so; all without a prefix.

    Raises:
        NotFoundError: there is none, though a prefix is given.
    """
    found = store.refs(prefix)
    if prefix and not found:
        raise NotFoundError("no ref in the store begins so", prefix, "'orchestrator models' lists all")
    return found


def _row(store: Store, ref: str, verify: bool) -> dict[str, Any] | None:
    """A ref with what it names; None of a canary that ended."""
    row: dict[str, Any] = {"ref": ref, "digest": "", "state": "unchecked"}
    try:
        row["digest"] = digest = store.ref(ref)
        if ref.endswith(f"/{releases.CANARY}") and not is_digest(digest):
            return None
        if ref.endswith(f"/{releases.LIVE}") and releases.exists(store, digest):
            epoch = releases.read(store, digest).spec.weight_epoch
            return {**row, "kind": f"release, weight epoch {epoch}", "bytes": None, "state": "ok"}
        if not store.has(digest):
            return {**row, "kind": store.spec(digest).tree.kind, "bytes": None, "state": "ok"}
        if verify:
            store.verify(digest)
            row["state"] = "ok"
        manifest = store.manifest(digest)
    except CorruptArtifactError:
        return {**row, "kind": "", "bytes": None, "state": "damaged"}
    except NotFoundError:
        return {**row, "kind": "", "bytes": None, "state": "missing"}
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
