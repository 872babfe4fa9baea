"""The command `bench`."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from orchestrator.command_guard import print_json
from orchestrator.options import JsonOption

Url = Annotated[str, typer.Argument(help="Of the server, like http://127.0.0.1:8000.")]
Model = Annotated[str | None, typer.Option("--model", help="Its name. (default: the only one served)")]
Rate = Annotated[
    float | None,
    typer.Option("--rate", min=0.1, help="Open loop: requests per second, at Poisson times."),
]
Connections = Annotated[
    int | None,
    typer.Option("--connections", min=1, max=512, help="Closed loop: requests in work. (default: 1)"),
]
Seconds = Annotated[float, typer.Option("--seconds", min=0.1, help="Length of the load.")]
Rows = Annotated[int, typer.Option("--rows", min=1, help="Rows of a request.")]
InJson = Annotated[bool, typer.Option("--json-tensors", help="Tensors as JSON instead of binary.")]
Header = Annotated[
    list[str] | None,
    typer.Option("--header", metavar="'NAME: VALUE'", help="Sent with every request; may be repeated."),
]
_HEADER = re.compile(r"\s*([\w!#$%&'*+.^`|~-]+)\s*:\s*([\t\x20-\x7e\xa0-\xff]*?)\s*", re.ASCII)
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the values and the times.")]


def bench(
    url: Url,
    model: Model = None,
    rate: Rate = None,
    connections: Connections = None,
    seconds: Seconds = 10.0,
    rows: Rows = 1,
    json_tensors: InJson = False,
    header: Header = None,
    seed: Seed = 0,
    as_json: JsonOption = False,
) -> None:
    """Send load to a served model and measure rate and latency; the request is made from its metadata."""
    from orchestrator.load.generate import closed_loop, open_loop
    from orchestrator.load.request import target_of

    if rate is not None and connections is not None:
        raise typer.BadParameter("give either --rate or --connections", param_hint="--rate")
    pairs = [_HEADER.fullmatch(text) for text in header or []]
    headers = {pair[1]: pair[2] for pair in pairs if pair}
    if not all(pairs):
        raise typer.BadParameter(
            "needs a name of ASCII without blanks and a value of Latin-1, with a colon between",
            param_hint="--header",
        )
    name, target = target_of(url, model, rows=rows, binary=not json_tensors, seed=seed, headers=headers)
    if rate is not None:
        report = open_loop(target, rate=rate, seconds=seconds, seed=seed)
    else:
        report = closed_loop(target, connections=connections or 1, seconds=seconds)
    document: dict[str, Any] = {"url": url, "model": name, "rows": rows, **report.plain()}
    if as_json:
        print_json(document)
    else:
        for key, value in document.items():
            typer.echo(f"{key}: {value:.2f}" if isinstance(value, float) else f"{key}: {value}")
    raise typer.Exit(1 if report.answered < report.requests or not report.requests else 0)
