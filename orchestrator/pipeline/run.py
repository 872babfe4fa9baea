"""A whole run, or its first stages; each stage takes what is finished from the store."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from deployments.local import check_port
from orchestrator.cluster import alive_nodes, connected, cores_in_use, inside_job
from orchestrator.config.load import load_run, override, parse_yaml, validate
from orchestrator.config.run import RunConfig
from orchestrator.config.tracking import MlflowTracking
from orchestrator.data.cache import CACHE_VARIABLE
from orchestrator.errors import ConfigError, NotFoundError
from orchestrator.files import write_whole
from orchestrator.live import consumer_for
from orchestrator.pipeline.assembling import Assembly
from orchestrator.pipeline.compressing import compress_variants
from orchestrator.pipeline.context import STORE_VARIABLE, Run, open_run, run_folder, with_data_root
from orchestrator.pipeline.elsewhere import check_elsewhere
from orchestrator.pipeline.evaluation import Evaluation, evaluate
from orchestrator.pipeline.limits import check_ensembles, check_named, check_search
from orchestrator.pipeline.reporting import PAGE, TUNING, report, report_again, report_search
from orchestrator.pipeline.searching import search
from orchestrator.pipeline.serving import check_served
from orchestrator.pipeline.summary import print_table, summarize
from orchestrator.pipeline.training import train
from orchestrator.pipeline.tuning import document, snippet, tune, tuned_run
from orchestrator.progress import Consumer, Progress, Together
from orchestrator.tracking.mlflow import Mlflow
from orchestrator.tracking.tensorboard import TensorBoard

Stage = Literal["train", "search", "ensemble", "evaluate", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)
EMBEDDED = "digits"
"""Name of the run file inside the package."""


def read_config(config: str, overrides: Sequence[str] = (), data: str | None = None) -> RunConfig:
    """The run file at a path, or the embedded one, with overrides and data folder applied."""
    if config == EMBEDDED and not Path(config).is_file():
        text = (files("orchestrator.pipeline") / f"{EMBEDDED}.yaml").read_text(encoding="utf-8")
        run = validate(RunConfig, override(parse_yaml(text, config), overrides), config)
    else:
        run = load_run(Path(config), overrides)
    return with_data_root(run, data)


def execute_file(
    config: str,
    *,
    until: str = "report",
    store: str | None = None,
    overrides: Sequence[str] = (),
    data: str | None = None,
    fresh: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Read a run file and execute it; see `execute`. The final table is printed unless `quiet`."""
    run = read_config(config, overrides, data)
    summary = execute(run, until=until, store=store, fresh=fresh, live=not quiet)
    if "search" in summary and not quiet:
        print_table(summary, run_folder(run.name, store))
    return summary


def execute(
    config: RunConfig,
    *,
    until: str = "report",
    store: str | None = None,
    fresh: bool = False,
    live: bool = False,
) -> dict[str, Any]:
    """Run the stages in order up to `until`.

    Args:
        config: the whole run.
        until: last stage: train, search, ensemble, evaluate (with a report), or report (served as well).
        store: path or URI of the store.
        fresh: train models anew even if one of that name was trained with other settings.
        live: show where the run stands, if standard error is a terminal; else one line an event.

    Returns:
        The run summary (design: Run summary); before the evaluation, the digests by name.

    Raises:
        StoreLockedError: a living process works on a run of this name in this store.
        OrchestratorError: whatever went wrong, as one sentence; what was finished stays in the store.
    """
    if until not in STAGES:
        raise ConfigError("no such stage", until, f"stages: {', '.join(STAGES)}")
    with opened(config, store, live) as run:
        if until == "report" and config.serving is not None and config.ensembles:
            for port in filter(None, (config.serving.port, config.serving.grpc_port)):
                check_port(config.serving.host, port)  # not found occupied after hours of work
        with run.progress:  # the view is gone before Ray ends, and before anything is said about how it went
            return _stages(run, until, fresh)


def tune_file(
    config: str,
    *,
    store: str | None = None,
    overrides: Sequence[str] = (),
    data: str | None = None,
    fresh: bool = False,
    quiet: bool = False,
    out: Path | None = None,
) -> dict[str, Any]:
    """Search better training settings for the model that a run file's `training_search` names.

    The best model is printed as it stands in a run file, unless `quiet`.

    Args:
        config: path of the run file.
        store: where the results go.
        overrides: settings to change first.
        data: folder of the run's data files.
        fresh: search anew even if the search or its model had other settings before.
        quiet: print nothing.
        out: file for a whole run file with the best model in it.

    Returns:
        The best model, the front and where the report is, as plain values.

    Raises:
        OrchestratorError: whatever went wrong, as one sentence; what was finished stays in the store.
    """
    settings = read_config(config, overrides, data)
    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError("the folder of the run file does not exist", out.absolute().parent, "make it first")
    if out is not None and (
        out.is_dir() or (out.exists() and Path(config).exists() and out.samefile(config))
    ):
        raise ConfigError("this is a folder, or the run file itself", out, "name another file")
    with opened(settings, store, not quiet) as run, run.progress:
        found = tune(run, fresh=fresh)
        told = document(run, found)
    if out is not None:
        out.write_text(tuned_run(settings, found.entry), encoding="utf-8")
        told["written"] = str(out)
    if not quiet:
        print(f"# {told['reason']}\n# {told['best']['ref']}; report: {told['report']}")
        print(snippet(told["model"], told["entry"]), end="")
    return told


@contextmanager
def opened(config: RunConfig, store: str | None, live: bool) -> Iterator[Run]:
    """The run while this process alone works on it; Ray is joined when a stage first needs it."""
    folder = run_folder(config.name, store)
    kept = TensorBoard(folder / "tensorboard")
    consumers: list[Consumer] = [consumer_for(live=live and not inside_job()), kept]
    with ExitStack() as stack:
        stack.callback(kept.close)
        if config.tracking is not None:
            consumers.append(stack.enter_context(_tracked(config, config.tracking, folder)))
        progress = Progress(Together(consumers), cores_in_use)
        run = open_run(config, store=store, progress=progress, cluster=lambda: _join(stack, store))
        stack.enter_context(run.store.lock(f"run-{config.name}"))
        run.store.clean()
        yield run


def _stages(run: Run, until: str, fresh: bool) -> dict[str, Any]:
    """The stages in order, each with what the earlier ones found."""
    name = run.config.name
    if until == "search" and run.config.search is None and not run.config.variants:
        raise ConfigError("the run file has no search", name, "give it one, as examples/digits.yaml has")
    if until != "train":
        check_search(run)
        check_named(run)
    if until not in ("train", "search"):
        check_ensembles(run)
        check_elsewhere(run)
    models = train(run, fresh=fresh)
    if until == "train":
        return {"run": name, "models": models}
    variants = compress_variants(run, models)
    found = search(run, models, variants, fresh=fresh)
    if until == "search":
        if found:
            report_search(run, models, found)
            run.progress("search", f"report: {run.folder / PAGE}")
        chosen = found.chosen.digest if found and found.chosen else None
        digests = {variant: member.digest for variant, member in variants.items()}
        return {"run": name, "models": models, "variants": digests, "chosen": chosen}
    members, specs = Assembly(run, models, variants, found, fresh=fresh).all()
    if until == "ensemble":
        refs = {ensemble: run.store.ref(f"{name}/{ensemble}") for ensemble in specs}
        return {"run": name, "models": models, "ensembles": refs}
    evaluation = evaluate(run, members, found, specs)
    run.folder.mkdir(parents=True, exist_ok=True)
    served = check_served(run, specs) if until == "report" else _served_before(run, evaluation)
    summary = summarize(run, found, evaluation, served)
    report(run, summary, models, found, specs, evaluation)
    return _finish(run, summary)


@contextmanager
def _tracked(config: RunConfig, settings: MlflowTracking, folder: Path) -> Iterator[Mlflow]:
    """A server that is told of the run, and at its end of the reports."""
    params = config.model_dump(mode="json", exclude_unset=True, exclude={"tracking"})
    tracker = Mlflow(settings, config.name, params)
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        names = [(PAGE, ""), ("summary.json", ""), (f"{TUNING}/{PAGE}", TUNING)]
        tracker.finish(status, [(folder / name, place) for name, place in names])


def show(name: str, *, store: str | None, quiet: bool) -> dict[str, Any]:
    """Write the report of a run again, from what its folder holds, and print the run's table.

    Returns:
        The run summary; of a run that ended after its search, what is known without test figures.

    Raises:
        NotFoundError: there is no summary of that run.
    """
    folder = run_folder(name, store)
    report_again(folder / TUNING)
    shown = report_again(folder)
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if shown is None:
            raise NotFoundError(
                "no finished run of that name", folder, "orchestrator run RUN_FILE makes one"
            ) from error
        if not quiet:
            print(f"search: {shown['search']['reason']}\nreport: {folder / PAGE}")
        return shown
    if not quiet:
        print_table(summary, folder)
    return summary


def _join(stack: ExitStack, store: str | None) -> None:
    stack.enter_context(connected())
    if alive_nodes() == 1:
        return
    for variable, given in ((STORE_VARIABLE, store), (CACHE_VARIABLE, None)):
        if not (given or os.environ.get(variable)):
            raise ConfigError(
                "a cluster of several nodes needs a store and a cache of rows that all of them reach",
                f"{variable} is not set",
                f"set {variable} to a shared folder (docs/cluster.md)",
            )


def _served_before(run: Run, evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """What an earlier run served, where the ensemble is still the same."""
    try:
        before = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))
        same = {
            name for name, found in evaluation.ensembles.items() if before["ensembles"].get(name) == found
        }
        return {name: figures for name, figures in before["serving"].items() if name in same}
    except (OSError, ValueError, KeyError):
        return {}


def _finish(run: Run, summary: dict[str, Any]) -> dict[str, Any]:
    write_whole(run.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    run.progress("done", f"in {run.progress.seconds:.0f} s")
    return summary
