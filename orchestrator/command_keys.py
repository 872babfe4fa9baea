"""`orchestrator keys`: the API keys of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.command_guard import print_json
from orchestrator.options import JsonOption


def keys(
    action: Annotated[Literal["add", "list", "revoke"], typer.Argument(help="What to do.")],
    name: Annotated[str, typer.Argument(help="Name of the key: who or what will use it.")] = "",
    scope: Annotated[
        Literal["data", "admin"], typer.Option(help="data asks models; admin may also change what is served.")
    ] = "data",
    file: Annotated[Path, typer.Option("--file", help="File of the keys' names and hashes.")] = Path(
        "runs/keys"
    ),
    as_json: JsonOption = False,
) -> None:
    """Make, list or revoke the API keys that a server asks for."""
    from orchestrator import keys as stored

    if (action == "list") == bool(name):
        wanted = "none" if action == "list" else "a name"
        raise typer.BadParameter(f"'{action}' takes {wanted}", param_hint="NAME")
    if action == "add":
        token = stored.add(file, name, scope)
        if as_json:
            print_json({"name": name, "scope": scope, "key": token})
        else:
            typer.echo(token)
            typer.secho(f"shown this once; its hash is in {file}", err=True)
        return
    if action == "revoke":
        stored.revoke(file, name)
    found = [{"name": key.name, "scope": key.scope} for key in stored.read(file)]
    if as_json:
        print_json(found)
    else:
        for key in found:
            typer.echo(f"{key['name']}  {key['scope']}")
