"""The command `explain`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from orchestrator.command_guard import print_json
from orchestrator.options import Config, DataOption, JsonOption, SetOption, StoreOption

Ensemble = Annotated[str, typer.Argument(help="An ensemble of the run that was fitted.")]
Row = Annotated[int, typer.Argument(min=0, help="Number of the row in its part, from 0.")]
Part = Annotated[
    Literal["train", "validation", "calibration", "contract", "test"],
    typer.Option("--part", help="Part of the data that the row is in."),
]


def explain(
    config: Config,
    ensemble: Ensemble,
    row: Row,
    part: Part = "test",
    store: StoreOption = None,
    overrides: SetOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Why an ensemble answers one row as it does: who said what, who decided it, and where it looked."""
    from orchestrator.pipeline.why import explain_file, print_explanation

    document = explain_file(
        config, ensemble, row, part=part, store=store, overrides=overrides or [], data=data
    )
    if as_json:
        print_json(document)
    else:
        print_explanation(document)
