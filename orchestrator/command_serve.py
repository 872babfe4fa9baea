"""`orchestrator serve`: ensembles over HTTP, and `orchestrator keys`: who may ask them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator import keys as stored
from orchestrator.command_guard import print_json
from orchestrator.options import AllowOption, JsonOption, StoreOption


def serve(
    names: Annotated[
        list[str], typer.Argument(help="A run's name (all its ensembles) or refs like digits/mix.")
    ],
    store: StoreOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    placement: Annotated[
        Literal["fused", "distributed", "auto"], typer.Option(help="Where members run.")
    ] = "distributed",
    instances: Annotated[
        int, typer.Option(min=1, help="Fused members: copies that compute at once, a core each.")
    ] = 1,
    allow: AllowOption = None,
    key_file: Annotated[
        Path | None,
        typer.Option("--keys", help="File of API keys to ask for; needed where --host is not loopback."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second that each key may make. (default: any)")
    ] = None,
    no_keys: Annotated[
        bool, typer.Option("--open", help="Answer other machines without keys: only behind a gateway.")
    ] = False,
    certificate: Annotated[
        Path | None, typer.Option("--tls-certificate", help="PEM file: serve HTTPS. Goes with --tls-key.")
    ] = None,
    private_key: Annotated[
        Path | None, typer.Option("--tls-key", help="PEM file of the certificate's private key.")
    ] = None,
    log: Annotated[
        Literal["off", "text", "json"], typer.Option(help="A line for each request on the replica's log.")
    ] = "off",
    signers: Annotated[
        list[str] | None,
        typer.Option("--require-signature", metavar="KEY", help="Load only what this public key signed."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve ensembles over HTTP (Open Inference Protocol V2) until Ctrl-C, with a page at the root."""
    from orchestrator.pipeline.serving import serve_refs

    if (certificate is None) != (private_key is None):
        raise typer.BadParameter("goes with the other", param_hint="--tls-certificate / --tls-key")
    keys_at = None if key_file is None else str(key_file.absolute())
    tls = {"certificate": str(certificate), "key": str(private_key)}
    serving = {
        "host": host,
        "port": port,
        "placement": placement,
        "instances": instances,
        "access": {"keys": keys_at, "open": no_keys, "rate_per_s": rate},
        "tls": None if certificate is None else tls,
        "request_log": log,
    }
    serve_refs(names, store=store, serving=serving, allow=allow or [], signers=signers or [], as_json=as_json)


def keys(
    action: Annotated[
        Literal["add", "list", "revoke", "signing"],
        typer.Argument(help="API keys: add, list, revoke; 'signing' makes a key that signs artifacts."),
    ],
    name: Annotated[str, typer.Argument(help="Name of the key: who or what will use it.")] = "",
    scope: Annotated[
        Literal["data", "admin"], typer.Option(help="data asks models; admin may also change what is served.")
    ] = "data",
    file: Annotated[
        Path, typer.Option("--file", help="File of the keys' names and hashes, or for the new signing key.")
    ] = Path("runs/keys"),
    as_json: JsonOption = False,
) -> None:
    """Make, list or revoke the API keys that a server asks for, or make a key that signs artifacts."""
    if action == "signing":
        _make_signing_key(name, file, as_json)
        return
    if (action == "list") == bool(name):
        wanted = "no name" if action == "list" else "a name"
        raise typer.BadParameter(f"'{action}' takes {wanted}", param_hint="NAME")
    if action == "add":
        token = stored.add(file, name, scope)
        if as_json:
            print_json({"name": name, "scope": scope, "key": token})
        else:
            typer.echo(token)
            typer.secho(f"shown this once; {file} holds its hash", err=True)
        return
    if action == "revoke":
        stored.revoke(file, name)
    found = [{"name": key.name, "scope": key.scope} for key in stored.read(file)]
    if as_json:
        print_json(found)
    else:
        for key in found:
            typer.echo(f"{key['name']}  {key['scope']}")


def _make_signing_key(name: str, file: Path, as_json: bool) -> None:
    from orchestrator.store.signing import make_key

    if name:
        raise typer.BadParameter("'signing' takes no name", param_hint="NAME")
    public = make_key(file)
    if as_json:
        print_json({"public_key": public, "file": str(file)})
    else:
        typer.echo(public)
        typer.secho(f"that is the public key; {file} holds the private one: keep it to yourself", err=True)
