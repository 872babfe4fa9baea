"""The command `choose`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.guard import print_json
from orchestrator.options import Config, DataOption, JsonOption, SetOption, StoreOption


def _bound(text: str, flag: str) -> Any:
    return typer.Option(flag, help=text)


def choose(
    config: Config = "digits",
    p99_ms: Annotated[float | None, _bound("Largest 99th percentile of a call.", "--p99-ms")] = None,
    latency_ms: Annotated[float | None, _bound("Largest expected latency of a call.", "--latency-ms")] = None,
    max_drop: Annotated[
        float | None,
        _bound("Largest drop of the metric against the reference; the fastest wins.", "--max-drop"),
    ] = None,
    reference: Annotated[
        str | None, _bound("Model of the run. (default: the best uncompressed ensemble)", "--reference")
    ] = None,
    max_bytes: Annotated[int | None, _bound("Of all members together.", "--max-bytes")] = None,
    cost_per_million: Annotated[
        float | None, _bound("Largest price of a million rows.", "--cost-per-million")
    ] = None,
    max_models: Annotated[
        int | None, _bound("Most members that one answer is made of.", "--max-models")
    ] = None,
    single_model: Annotated[
        bool, typer.Option("--single-model", help="One model, which can be inspected.")
    ] = False,
    min_robustness: Annotated[
        float | None, _bound("Bound on the metric of shifted rows.", "--min-robustness")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Rows of a call; may be repeated. (default: the run file's)")
    ] = None,
    core_hour: Annotated[float, typer.Option(help="Price of one core for an hour.")] = 0.04,
    name: Annotated[str, typer.Option(help="Name of the spec: 'orchestrator serve RUN/NAME'.")] = "choice",
    store: StoreOption = None,
    overrides: SetOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose the ensemble, or single model, that keeps a goal; the front and honest baselines beside it."""
    from orchestrator.config.goal import Goal
    from orchestrator.config.load import validate
    from orchestrator.pipeline.choice_table import print_choice
    from orchestrator.pipeline.choosing import choose_file

    bounds = {
        "p99_ms": p99_ms,
        "latency_ms": latency_ms,
        "max_drop": max_drop,
        "reference": reference,
        "max_bytes": max_bytes,
        "cost_per_million": cost_per_million,
        "max_models_per_answer": max_models,
        "single_model": single_model,
        "min_robustness": min_robustness,
    }
    costs: dict[str, Any] = {"core_hour": core_hour} | ({"batches": tuple(batch)} if batch else {})
    goal = validate(Goal, bounds, "the goal")
    document = choose_file(
        config,
        goal,
        costs=costs,
        name=name,
        store=store,
        overrides=overrides or [],
        data=data,
        quiet=as_json,
    )
    if as_json:
        print_json(document)
    else:
        print_choice(document, store)
    raise typer.Exit(1 if document["recommended"] is None else 0)
