"""The command `choose`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.command_guard import print_json
from orchestrator.options import Config, DataOption, FreshOption, JsonOption, SetOption, StoreOption


def _option(flag: str, text: str) -> Any:
    return typer.Option(flag, help=text)


P99 = Annotated[float | None, _option("--p99-ms", "Largest 99th percentile of a call.")]
Expected = Annotated[float | None, _option("--latency-ms", "Largest expected latency of a call.")]
Drop = Annotated[float | None, _option("--max-drop", "Largest drop against the reference; the fastest wins.")]
Reference = Annotated[
    str | None, _option("--reference", "Model of the run. (default: the best uncompressed ensemble)")
]
Bytes = Annotated[int | None, _option("--max-bytes", "Of all members together.")]
Cost = Annotated[float | None, _option("--cost-per-million", "Largest price of a million rows.")]
Models = Annotated[int | None, _option("--max-models", "Most members that one answer is made of.")]
Single = Annotated[bool, _option("--single-model", "One model, which can be inspected.")]
Robustness = Annotated[float | None, _option("--min-robustness", "Bound on the metric of shifted rows.")]
Batch = Annotated[
    list[int] | None, _option("--batch", "Rows of a call; may be repeated. (default: the run file's)")
]
CoreHour = Annotated[float, _option("--core-hour", "Price of one core for an hour.")]
Name = Annotated[str, _option("--name", "Name of the spec: 'orchestrator serve RUN/NAME'.")]


def choose(
    config: Config = "digits",
    p99_ms: P99 = None,
    latency_ms: Expected = None,
    max_drop: Drop = None,
    reference: Reference = None,
    max_bytes: Bytes = None,
    cost_per_million: Cost = None,
    max_models: Models = None,
    single_model: Single = False,
    min_robustness: Robustness = None,
    batch: Batch = None,
    core_hour: CoreHour = 0.04,
    name: Name = "choice",
    fresh: FreshOption = False,
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
    files: dict[str, Any] = {"store": store, "overrides": overrides or [], "data": data}
    document = choose_file(config, goal, costs=costs, name=name, fresh=fresh, quiet=as_json, **files)
    if as_json:
        print_json(document)
    else:
        print_choice(document, store)
    raise typer.Exit(1 if document["recommended"] is None else 0)
