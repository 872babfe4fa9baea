"""The command `sensitivity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.command_guard import print_document
from orchestrator.options import AllowOption, JsonOption, StoreOption

Source = Annotated[str, typer.Argument(help="Ref or digest of the model, like digits/teacher.")]
Rows = Annotated[
    str, typer.Option("--data", help="Rows to look at: run file, Parquet file, image folder, or 'digits'.")
]
Amounts = Annotated[
    list[float] | None,
    typer.Option(
        "--amount", min=0.01, max=0.99, help="Share of a layer's channels to remove; may be repeated."
    ),
]
Plot = Annotated[Path | None, typer.Option("--out", help="HTML file to write: a line a layer.")]
Threads = Annotated[int, typer.Option(min=1, help="Torch threads.")]


def sensitivity(
    source: Source,
    data: Rows,
    amount: Amounts = None,
    out: Plot = None,
    store: StoreOption = None,
    threads: Threads = 1,
    allow: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prune each layer of a model alone and look at the metric; nothing is kept."""
    from orchestrator.pipeline.by_hand import sensitivity_ref

    document = sensitivity_ref(
        source,
        data=data,
        amounts=tuple(amount or (0.25, 0.5, 0.75)),
        out=out,
        store=store,
        threads=threads,
        allow=tuple(allow or ()),
    )
    print_document(document, as_json=as_json)
