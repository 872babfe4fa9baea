"""Arguments and options that several commands of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Config = Annotated[str, typer.Argument(help="Run file, or 'digits' for the embedded one.")]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Store: a path or URI. (default: $ORCHESTRATOR_STORE, else runs/store)"),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one setting; may be repeated.")
]
DataOption = Annotated[str | None, typer.Option("--data", help="Folder of the run's data files.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
FreshOption = Annotated[
    bool,
    typer.Option(
        "--fresh", help="Go on even where settings of a model or search changed since the last run."
    ),
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="PKG.MOD:FN", help="Import path that models may be built from."),
]
SearchStage = Annotated[
    Literal["compression", "training"],
    typer.Option("--stage", help="What to search: compressed variants, or settings of a model's training."),
]
TunedOption = Annotated[
    Path | None, typer.Option("--out", help="Stage training: write a run file with the best model in it.")
]
PlanOption = Annotated[
    str,
    typer.Option(
        "--plan", help="YAML file with a list of steps, or the list: '[{kind: bf16}]' (docs/compression.md)."
    ),
]
RowsOption = Annotated[
    str,
    typer.Option(
        "--data", help="Rows to train and calibrate with: run file, Parquet file, image folder, or 'digits'."
    ),
]
FormatOption = Annotated[
    Literal["pt2", "onnx", "executorch"] | None,
    typer.Option("--format", help="Where the ending does not say it."),
]
ToleranceOption = Annotated[
    float, typer.Option("--tolerance", min=0, max=1, help="Distance of two latencies that is noise.")
]
