"""`orchestrator models`: what the store holds, whether it is intact, and what may go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.command_guard import complain, print_json
from orchestrator.options import JsonOption, StoreOption

_GRACE_HOURS = 24.0


def models(
    what: Annotated[
        str, typer.Argument(help="verify, repair, gc, migrate or sign; else show refs that begin with this.")
    ] = "",
    prefix: Annotated[str, typer.Argument(help="sign: refs that begin with this. (default: all)")] = "",
    check: Annotated[
        bool, typer.Option("--verify", help="Listing: check every shown artifact's files.")
    ] = False,
    store: StoreOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="repair, gc, migrate: only say what would be done.")
    ] = False,
    source: Annotated[
        str | None, typer.Option("--from", help="repair: a store to fetch damaged artifacts from.")
    ] = None,
    grace: Annotated[
        float, typer.Option("--grace", min=1.0, help="gc: hours in which what was used stays.")
    ] = _GRACE_HOURS,
    studies: Annotated[
        bool,
        typer.Option("--studies", help="gc: also forget searches, and their variants that nothing names."),
    ] = False,
    key: Annotated[Path | None, typer.Option("--key", help="sign: file of the private key.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List what the store holds; verify, repair, clean up, migrate or sign it."""
    from orchestrator.pipeline import keeping

    if prefix and what != "sign":
        raise typer.BadParameter("goes with sign; to list refs name one beginning", param_hint="PREFIX")
    if (key is None) == (what == "sign"):
        raise typer.BadParameter("goes with sign, which needs it", param_hint="--key")
    if what == "verify":
        document, problem = keeping.verify(store)
        _tell(document, as_json, _verified(document))
        if problem is not None:
            raise complain(problem, as_json=False)  # the document is the one JSON document
    elif what == "repair":
        document = keeping.repair(store, source=source, dry_run=dry_run)
        _tell(document, as_json, _repaired(document))
    elif what == "gc":
        document = keeping.collect(store, grace_s=grace * 3600, dry_run=dry_run, studies=studies)
        _tell(document, as_json, _collected(document))
    elif what == "migrate":
        document = keeping.migrate(store, dry_run=dry_run)
        _tell(document, as_json, f"schema {document['before']} -> {document['after']}")
    elif key is not None:
        document = keeping.sign(store, key=key, prefix=prefix)
        _tell(document, as_json, _signed(document))
    else:
        _list(what, store, check, as_json)


def _list(prefix: str, store: str | None, check: bool, as_json: bool) -> None:
    from orchestrator.pipeline.listing import list_models

    problem = list_models(prefix, store=store, verify=check, as_json=as_json)
    if problem is not None:
        raise complain(problem, as_json=False)  # the list is the one JSON document


def _tell(document: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        print_json(document)
    else:
        typer.echo(text)


def _verified(document: dict[str, Any]) -> str:
    lines = [f"{damage['key']}: {damage['problem']}" for damage in document["damaged"]]
    return "\n".join([*lines, f"{document['artifacts']} artifacts, {len(lines)} things damaged"])


def _repaired(document: dict[str, Any]) -> str:
    lines = [f"{one['key']}: {one['problem']}; {one['done']}" for one in document["repaired"]]
    begin = "would mend" if document["dry_run"] else "mended"
    return "\n".join([*lines, f"{begin} {len(lines)} things"])


def _signed(document: dict[str, Any]) -> str:
    lines = [f"{ref}: damaged, and passed over" for ref in document["damaged"]]
    return "\n".join([*lines, f"signed {len(document['signed'])} artifacts as {document['key']}"])


def _collected(document: dict[str, Any]) -> str:
    begin = "would remove" if document["dry_run"] else "removed"
    return "\n".join(
        [
            *document["removed"],
            f"{begin} {len(document['removed'])} things, {document['bytes']:,} bytes; "
            f"kept {document['kept']} artifacts that are named and {document['young']} that are young",
        ]
    )
