"""The command line. Nothing heavy is imported until a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from orchestrator import __version__
from orchestrator.command_bench import bench
from orchestrator.command_choose import choose
from orchestrator.command_explain import explain
from orchestrator.command_guard import guarded, print_document, print_json
from orchestrator.command_models import models
from orchestrator.command_release import canary, release, status, weights
from orchestrator.command_sensitivity import sensitivity
from orchestrator.command_serve import keys, serve
from orchestrator.command_submit import submit
from orchestrator.command_support import support_bundle
from orchestrator.options import (
    AllowOption,
    Config,
    DataOption,
    FormatOption,
    FreshOption,
    JsonOption,
    PlanOption,
    RowsOption,
    SearchStage,
    SetOption,
    StoreOption,
    ToleranceOption,
    TunedOption,
)

app = typer.Typer(
    help="Train, compress, ensemble and serve models from one typed YAML file on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _stage_command(name: str, until: str, text: str) -> None:
    """Register a command that runs the pipeline up to a stage."""

    @app.command(name, help=text)
    @guarded
    def command(
        config: Config,
        store: StoreOption = None,
        overrides: SetOption = None,
        data: DataOption = None,
        fresh: FreshOption = False,
        as_json: JsonOption = False,
    ) -> None:
        from orchestrator.pipeline.run import execute_file

        summary = execute_file(
            config, until=until, store=store, overrides=overrides or [], data=data, fresh=fresh, quiet=as_json
        )
        if as_json:
            print_json(summary)


_stage_command("run", "report", "The whole run: train, compress, ensemble, evaluate, serve and report.")
_stage_command("train", "train", "Train the models of a run file.")
_stage_command("ensemble", "ensemble", "Train and search, then fit the ensembles.")
_stage_command("evaluate", "evaluate", "Everything but serving: test figures, latencies, report.")


@app.command()
@guarded
def search(
    config: Config,
    stage: SearchStage = "compression",
    store: StoreOption = None,
    overrides: SetOption = None,
    data: DataOption = None,
    fresh: FreshOption = False,
    out: TunedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train, then search compressed variants on measured latency, or better training settings."""
    from orchestrator.pipeline.run import execute_file, tune_file

    files: dict[str, Any] = {"store": store, "data": data, "overrides": overrides or []}
    if stage == "training":
        summary = tune_file(config, out=out, fresh=fresh, quiet=as_json, **files)
    elif out is not None:
        raise typer.BadParameter("goes with --stage training", param_hint="--out")
    else:
        summary = execute_file(config, until="search", fresh=fresh, quiet=as_json, **files)
    if as_json:
        print_json(summary)


app.command()(guarded(choose))
app.command()(guarded(explain))


app.command()(guarded(serve))
app.command()(guarded(keys))
for _command in (models, status, release, weights, canary):
    app.command()(guarded(_command))


app.command()(guarded(bench))


@app.command("init")
@guarded
def init_command(
    data: Annotated[Path, typer.Option("--data", help="Parquet file or folder of class/name images.")],
    out: Annotated[Path, typer.Option("--out", help="Run file to write.")] = Path("run.yaml"),
    name: Annotated[str, typer.Option(help="Name of the run.")] = "first",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a commented run file from the schema of a data file."""
    from orchestrator.data.inspect import suggest
    from orchestrator.errors import ConfigError

    if out.is_dir():
        raise ConfigError("the run file would be a folder", out, "name a file with --out")
    if out.exists() and not force:
        raise ConfigError("the file exists already", out, "pass --force or another --out")
    if not out.absolute().parent.is_dir():
        raise ConfigError("the folder of the run file does not exist", out.absolute().parent, "make it first")
    out.write_text(suggest(data, name), encoding="utf-8")
    if as_json:
        print_json({"written": str(out)})
    else:
        typer.echo(f"wrote {out}; start it with: orchestrator run {out}")


@app.command("import")
@guarded
def import_command(
    name: Annotated[str, typer.Argument(help="Ref for the model, like digits/mine.")],
    factory: Annotated[str, typer.Option(help="Built-in architecture or package.module:callable.")],
    weights: Annotated[Path, typer.Option(help="A .safetensors file, or .pt read with weights_only.")],
    data: Annotated[
        str,
        typer.Option(help="What to measure it on: a run file, a Parquet file, an image folder, or 'digits'."),
    ],
    kwargs: Annotated[str, typer.Option(help="Factory arguments as YAML or JSON.")] = "{}",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring in a model that exists already: it is measured and becomes an artifact."""
    from orchestrator.pipeline.imported import import_model

    document = import_model(name, factory=factory, kwargs=kwargs, weights=weights, data=data, store=store)
    if as_json:
        print_json(document)


@app.command()
@guarded
def compress(
    source: Annotated[str, typer.Argument(help="Ref or digest of the model, like digits/teacher.")],
    plan: PlanOption,
    data: RowsOption,
    name: Annotated[str, typer.Option("--name", help="Ref for the variant, like digits/small.")],
    store: StoreOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random but the cut of the rows.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads of the steps.")] = 1,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch size to measure; may be repeated.")
    ] = None,
    execution: Annotated[
        Literal["eager", "lowered", "aoti", "openvino"] | None,
        typer.Option(help="Measure it in this one. (default: eager, or lowered after int8)"),
    ] = None,
    allow: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Apply a plan of compression steps to a model and say what it really did."""
    from orchestrator.pipeline.by_hand import compress_ref

    document = compress_ref(
        source,
        plan=plan,
        data=data,
        name=name,
        store=store,
        seed=seed,
        threads=threads,
        batches=tuple(batch or (1, 32)),
        execution=execution,
        allow=tuple(allow or ()),
    )
    print_document(document, as_json=as_json)


app.command()(guarded(sensitivity))


@app.command()
@guarded
def reproduce(
    variant: Annotated[str, typer.Argument(help="Ref like digits/chosen, digest, or its beginning.")],
    config: Annotated[
        str | None, typer.Option("--config", help="Its run file. (default: what is noted beside it)")
    ] = None,
    store: StoreOption = None,
    data: DataOption = None,
    execution: Annotated[
        Literal["eager", "lowered", "aoti", "openvino"] | None,
        typer.Option(help="Look at this one only. (default: all that were recorded)"),
    ] = None,
    tolerance: ToleranceOption = 0.05,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train a model without a plan again, as its run file says.")
    ] = False,
    allow: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make one variant again from its manifest; compare digest, accuracy and latency with the record."""
    from orchestrator.pipeline import comparing, reproducing

    found = reproducing.reproduce(
        variant,
        store=store,
        config=config,
        data=data,
        allow=tuple(allow or ()),
        execution=execution,
        tolerance=tolerance,
        train_again=retrain,
    )
    if as_json:
        print_json(found.plain())
    else:
        comparing.show(found)
    raise typer.Exit(0 if found.reproduces else 1)


@app.command("export")
@guarded
def export_command(
    source: Annotated[str, typer.Argument(help="Ref or digest of the model, like digits/chosen.")],
    path: Annotated[Path, typer.Argument(help="File to write; .pt2, .onnx or .pte says the format.")],
    format: FormatOption = None,
    store: StoreOption = None,
    allow: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model as one file for torch.export, ONNX or ExecuTorch."""
    from orchestrator.pipeline.exported import export_ref

    document = export_ref(source, path, format=format, store=store, allow=tuple(allow or ()))
    if as_json:
        print_json(document)
    else:
        typer.echo(f"wrote {document['file']} ({document['format']}): {document['bytes']:,} bytes")


app.command()(guarded(submit))
app.command("support-bundle")(guarded(support_bundle))


@app.command()
@guarded
def report(
    name: Annotated[str, typer.Argument(help="Name of the run.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's report again, print its table and say where the report is."""
    from orchestrator.pipeline.run import show

    summary = show(name, store=store, quiet=as_json)
    if as_json:
        print_json(summary)


@app.command()
@guarded
def schema(as_json: JsonOption = False) -> None:
    """Print the JSON Schema of the run file, for editors."""
    from orchestrator.config.load import json_schema

    del as_json  # the schema is JSON in any case
    print_json(json_schema())


@app.command()
@guarded
def doctor(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Check this machine and a running cluster, and say what to do about each finding."""
    from orchestrator.doctor import examine, render

    findings = examine(store)
    if as_json:
        print_json([finding.plain() for finding in findings])
    else:
        render(findings)
    raise typer.Exit(1 if any(finding.level == "error" for finding in findings) else 0)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `orchestrator` command."""
    app()
