"""The searches that `benchmarks.search_hypervolume` compares with: Ray Tune with plain trials, written well.

A trial applies its plan from a store of its own: nothing that an earlier trial made is used again, neither a
recovered model nor the teacher's outputs. It trains to its last epoch, is scored, and measures its latency
itself. Actors are reused, the decoded rows are one memory map for all, and as many trials run at once as
there are cores.
"""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import optuna
import torch
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from orchestrator.compression.plan import Context, apply_plan
from orchestrator.config.measure import Execution
from orchestrator.config.search import SearchSettings
from orchestrator.data.load import open_cached
from orchestrator.errors import CompressionError, ExecutionError
from orchestrator.measure.latency import measure, summarize
from orchestrator.measure.metrics import score
from orchestrator.models.build import example_inputs
from orchestrator.runtime.execute import load, predict
from orchestrator.search.space import Config, executions_of, plan_of, suggest
from orchestrator.search.trial import TrialJob
from orchestrator.store.store import Store

SAMPLERS: dict[str, type[BaseSampler]] = {"random": RandomSampler, "tpe": TPESampler}


@dataclass(frozen=True)
class Variant:
    """A finished trial of any arm."""

    at_s: float
    """When it had its accuracy and its latency, from the start of the arm."""
    store: str
    digest: str
    execution: Execution
    metric: float
    latency_ms: float
    """As its search saw it."""
    config: Config


@dataclass(frozen=True)
class Ran:
    """What an arm did in its time."""

    variants: tuple[Variant, ...]
    failed: int = 0
    stopped: int = 0
    """Early, by a rule."""
    measuring_s: float = 0.0
    """That trials waited for a measurement of latencies."""


def run(job: TrialJob, sampler: Literal["random", "tpe"], seconds: float, folder: Path, cores: int) -> Ran:
    """Search for so long in the running Ray.

    Args:
        job: with the store that has the parent.
        sampler: of Optuna, for two objectives: the metric up, the log of the latency down.
        seconds: after which trials are ended, whatever they are at.
        folder: of the trials' stores and results, empty.
        cores: trials at once.
    """
    for name in ("stores", "results", "tune"):
        (folder / name).mkdir(parents=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    searcher = OptunaSearch(
        space=partial(_define, job.search.plain()),
        metric=["metric", "log_ms"],
        mode=["max", "min"],
        sampler=SAMPLERS[sampler](seed=job.seed),  # type: ignore[call-arg]
    )
    shared = {"job": job.plain(), "folder": str(folder)}
    begun = time.time()
    with (folder / "tune.log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        tune.Tuner(
            tune.with_resources(tune.with_parameters(trial, shared=shared), {"cpu": 1}),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                max_concurrent_trials=cores,
                reuse_actors=True,
                time_budget_s=seconds,
            ),
            run_config=tune.RunConfig(name="search", storage_path=str(folder / "tune"), verbose=0),
        ).fit()
    results = [json.loads(path.read_text()) for path in (folder / "results").glob("*.json")]
    ended = [result for result in results if result["time"] - begun <= seconds]
    variants = [
        Variant(
            at_s=result["time"] - begun,
            **{
                name: result[name]
                for name in ("store", "digest", "execution", "metric", "latency_ms", "config")
            },
        )
        for result in ended
        if "digest" in result
    ]
    variants.sort(key=lambda variant: variant.at_s)
    return Ran(tuple(variants), failed=len(ended) - len(variants))


def trial(config: Config, shared: Mapping[str, Any]) -> dict[str, float]:
    """One trial, from its parent to its latency."""
    job, folder = TrialJob.model_validate(shared["job"]), Path(shared["folder"])
    name = uuid.uuid4().hex
    try:
        result: dict[str, Any] = _evaluate(job, config, folder / "stores" / name)
    except (CompressionError, ExecutionError) as error:
        result = {"error": str(error)}
    result["time"] = time.time()
    written = folder / "results" / f".{name}"
    written.write_text(json.dumps(result))
    written.rename(folder / "results" / f"{name}.json")
    if "error" in result:
        # A missing or infinite number would leave Optuna's trial running for ever.
        return {"metric": 0.0, "log_ms": math.log(1e4)}
    return {"metric": result["metric"], "log_ms": math.log(result["latency_ms"])}


def _evaluate(job: TrialJob, config: Config, folder: Path) -> dict[str, Any]:
    search, seconds = job.search, Seconds()
    torch.set_num_threads(search.cpus)
    store = Store(folder)
    Store(job.store, create=False).copy_artifact(job.parent, store)
    dataset = open_cached(Path(job.data_folder))
    validation = dataset.part("validation")
    context = Context(
        calibration=dataset.part("calibration").inputs,
        train=dataset.part("train"),
        validation=validation,
        seed=job.seed,
        threads=search.cpus,
        data=job.data_digest,
        metric=job.metric,
    )
    seconds.next("open")
    digest = apply_plan(store, job.parent, plan_of(config, search), context)
    seconds.next("plan")
    execution, latency = executions_of(config, search)[0], search.latency
    executable = load(store, digest, execution, threads=latency.threads, batch=latency.batch)
    seconds.next("load")
    metric = score(job.metric, predict(executable, validation.inputs), validation.targets)
    seconds.next("score")
    inputs = example_inputs(store.manifest(digest).signature, latency.batch)
    # A fixed number of blocks: beside other trials its own median would never be narrow.
    once = latency.model_copy(update={"most_blocks": latency.blocks})
    samples = measure({"variant": lambda: executable(inputs)}, once, baseline="variant")["variant"]
    seconds.next("latency")
    return {
        "store": str(folder),
        "digest": digest,
        "execution": execution,
        "metric": metric,
        "latency_ms": summarize(samples, latency, execution).median_ms,
        "config": dict(config),
        "seconds": seconds.taken,
    }


class Seconds:
    """Where a trial's time goes."""

    def __init__(self) -> None:
        self.taken: dict[str, float] = {}
        self._since = time.perf_counter()

    def next(self, name: str) -> None:
        """The time since the last call was for this."""
        now = time.perf_counter()
        self.taken[name], self._since = round(now - self._since, 3), now


def _define(settings: dict[str, Any], asked: Any) -> None:
    """Ask for a plan's free values, as Ray's adapter wants it: it notes what is suggested."""
    suggest(asked, SearchSettings.model_validate(settings))


def load_average() -> float:
    """Of the last minute: what else ran."""
    return os.getloadavg()[0]
