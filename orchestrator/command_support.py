"""The command `support-bundle`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.command_guard import print_json
from orchestrator.options import JsonOption, StoreOption

Out = Annotated[Path, typer.Option("--out", help="File to write.")]
RunFile = Annotated[Path | None, typer.Option("--config", help="A run file to take along.")]
RayLogs = Annotated[
    Path | None, typer.Option("--ray-logs", help="Folder of Ray's logs. (default: the newest session here)")
]


def support_bundle(
    out: Out = Path("support.tar.gz"),
    config: RunFile = None,
    ray_logs: RayLogs = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Collect versions, findings, figures of runs and logs in one archive, with secrets removed."""
    from orchestrator.support import bundle

    found = bundle(out, store=store, config=config, ray_logs=ray_logs)
    if as_json:
        print_json(found)
    else:
        typer.echo(f"wrote {found['file']}: {found['bytes']:,} bytes, {len(found['entries'])} files")
        typer.echo("secrets that were recognised are removed; look through it before you send it")
