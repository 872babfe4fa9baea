"""`orchestrator export`: one model of the store as a file for another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.compression.export import Format, export, format_of
from orchestrator.pipeline.context import one_model, store_root
from orchestrator.store.store import Store


def export_ref(
    source: str,
    path: Path,
    *,
    format: Format | None = None,
    store: str | None = None,
    allow: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Write a model as one file.

    Args:
        source: ref or digest of the model.
        path: of the file; its folder must exist.
        format: see `compression.export.export`; by the file's ending when not given.
        store: path or URI of the store.
        allow: import paths that factories may come from.

    Returns:
        `source`, `digest`, `file`, `format` and `bytes`.

    Raises:
        CompressionError: the format cannot hold the model.
        ConfigError: the ending of the file names no format.
        InputError: the name is an ensemble's, or the folder of the file does not exist.
        NotFoundError: no such model.
        StoreError: the file cannot be written.
    """
    format = format or format_of(path)
    opened = Store(store_root(store), create=False)
    digest = one_model(opened, source)
    export(opened, digest, path, format, allowed=allow)
    size = path.stat().st_size
    return {"source": source, "digest": digest, "file": str(path), "format": format, "bytes": size}
