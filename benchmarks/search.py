"""The search: what it costs beside its trials, and what it finds in equal time.

Parts that `--work` holds already are not measured again unless `--part` names them.

Parts scheduling, barrier and thousand: trials that only sleep, on 16 logical CPUs whatever the machine has.
Part noise: one variant measured again and again while a sweep burns all cores. Part hypervolume: this search
and Ray Tune's on CIFAR-10 (`benchmarks/search_hypervolume.py`). Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray
from ray import tune

from benchmarks.output import Ratio, Result, main
from benchmarks.parts import run_parts
from benchmarks.search_hypervolume import add_arguments, hypervolume
from benchmarks.search_noise import noise
from benchmarks.search_study import PARENT_MS, SPACE, Ends, Study, gate
from benchmarks.search_trials import sleep_only
from orchestrator.cluster import connected
from orchestrator.config.search import SearchSettings
from orchestrator.measure.machine import machine
from orchestrator.search.objectives import PARENT, TrialRow
from orchestrator.search.report import Details, write_report
from orchestrator.search.report.schema import TrialPoint

LOGICAL_CPUS = 16
TRIALS, EACH_S = 400, 1.0
MANY = 1000
GOAL = 0.90


@dataclass(frozen=True)
class Arm:
    """One way to run sleeping trials."""

    name: str
    driver: Literal["tune", "pool", "untuned Tune", "bare actors"]
    """The last two without our searcher and store."""
    batch: int = TRIALS
    spread: float = 0.0
    overlap: bool = False


ARMS = (
    Arm("pool", "pool"),
    Arm("bare actors", "bare actors"),
    Arm("Tune, tuned", "tune"),
    Arm("Tune, untuned", "untuned Tune"),
)
BARRIERS = (
    Arm("pool, batches of 16", "pool", batch=16),
    Arm("pool, uneven trials", "pool", spread=0.5),
    Arm("pool, uneven trials, batches of 64", "pool", batch=64, spread=0.5),
    Arm("pool, uneven trials, batches of 16", "pool", batch=16, spread=0.5),
    Arm("pool, uneven trials, batches of 16 that overlap", "pool", batch=16, spread=0.5, overlap=True),
)


def scheduling(rounds: int, arms: Sequence[Arm] = ARMS) -> Result:
    """`TRIALS` trials of a second on `LOGICAL_CPUS`, every arm in turns, each time in a Ray of its own."""
    runs: dict[str, list[dict[str, float]]] = {arm.name: [] for arm in arms}
    for turn in range(rounds):
        for place in range(len(arms)):
            arm = arms[(turn + place) % len(arms)]
            with tempfile.TemporaryDirectory() as folder, _own_ray():
                runs[arm.name].append(_scheduled(arm, Path(folder)))
            print(f"round {turn + 1}: {arm.name}: {runs[arm.name][-1]}", file=sys.stderr, flush=True)
    rows: list[dict[str, Any]] = []
    for arm in arms:
        found = {key: statistics.median(run[key] for run in runs[arm.name]) for key in runs[arm.name][0]}
        rows.append({"part": "scheduling", "arm": arm.name, "trials": TRIALS, "rounds": rounds, **found})
    values = {row["arm"]: row["efficiency"] for row in rows}
    if "pool" not in values:
        return rows, {}
    return rows, {"scheduling_efficiency": Ratio(values["pool"], GOAL)}


def thousand(folder: Path) -> tuple[list[dict[str, Any]], list[TrialRow]]:
    """A study of `MANY` trials that do nothing, with TPE and a constraint; then again over the same store."""
    settings = SearchSettings.model_validate({"trials": MANY, "batch": LOGICAL_CPUS, "space": SPACE})
    rows: list[dict[str, Any]] = []
    found: list[TrialRow] = []
    for name in ("first", "again"):
        with _own_ray():
            study = Study(folder, settings)
            started, cpu = time.perf_counter(), time.process_time()
            trials = study.run("pool", 0.0)
            seconds = time.perf_counter() - started
            cpu = time.process_time() - cpu
        at = [seen - started for seen, _ in study.ended]
        rows.append(
            {
                "part": "thousand",
                "run": name,
                "trials": len(trials),
                "feasible": sum(row.feasible for row in trials),
                "failed_trials": sum(row.status == "failed" for row in trials),
                "seconds": seconds,
                "sampler_s": study.study.seconds,
                "driver_cpu_s": cpu,
                "quarters_s": [round(at[MANY * quarter // 4 - 1], 1) for quarter in (1, 2, 3, 4)],
            }
        )
        found = found or trials
    return rows, found


def report(trials: Sequence[TrialRow], path: Path) -> dict[str, Any]:
    """Seconds and bytes of the page of these trials."""
    parent = TrialRow(PARENT, "parent", "eager", metric=0.9, bytes=1_000_000)
    details: Details = {
        "targets": {
            "search": {
                "trials": [_point(row) for row in trials],
                "parent": _point(parent.measured(PARENT_MS, (PARENT_MS, PARENT_MS), 1.0, (1.0, 1.0))),
            }
        },
        "max_drop": SearchSettings().promise.max_drop,
    }
    searched = {"trials": len(trials), "front": [], "chosen": None, "reason": "these trials are made up"}
    summary = {"schema": 1, "run": "thousand", "seconds": 0.0, "machine": machine(), "search": searched}
    started = time.perf_counter()
    write_report(summary, details, path)
    return {
        "part": "report",
        "trials": len(trials),
        "seconds": time.perf_counter() - started,
        "bytes": path.stat().st_size,
    }


def _scheduled(arm: Arm, folder: Path) -> dict[str, float]:
    started = time.perf_counter()
    cpu = time.process_time()
    if arm.driver == "untuned Tune":
        ended = _untuned(folder)
    elif arm.driver == "bare actors":
        ended = _bare(folder)
    else:
        settings = SearchSettings.model_validate(
            {
                "trials": TRIALS,
                "batch": arm.batch,
                "overlap": arm.overlap,
                "sampler": "random",
                "space": SPACE,
            }
        )
        study = Study(folder, settings, spread=arm.spread)
        study.run(arm.driver, EACH_S, LOGICAL_CPUS)
        ended = study.ended
    total_s = time.perf_counter() - started
    assert len(ended) == TRIALS
    first, last = ended[0], ended[-1]
    # All workers begin together (`search_trials._together`): at the first result each has worked as long.
    ideal_s = sum(length for _, length in ended) / LOGICAL_CPUS - first[1]
    return {
        "start_s": first[0] - started - first[1],
        "first_to_last_s": last[0] - first[0],
        "ideal_s": ideal_s,
        "efficiency": ideal_s / (last[0] - first[0]),
        "total_s": total_s,
        "driver_cpu_s": time.process_time() - cpu,
        "load": os.getloadavg()[0],
    }


class _Ends(tune.Callback):
    """Notes when Tune knew of each end."""

    def __init__(self) -> None:
        self.ended: Ends = []

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        del iteration, trials, trial, info
        self.ended.append((time.perf_counter(), EACH_S))


def _bare(folder: Path) -> Ends:
    """The least that Ray can do: actors that sleep, each called again when it returns."""

    class Sleeper:
        def sleep(self, config: dict[str, Any]) -> None:
            sleep_only(config)

    config = {"x": 0.0, "each_s": EACH_S, **gate(folder, LOGICAL_CPUS)}
    remote: Any = ray.remote(Sleeper)
    actors = [remote.options(num_cpus=1).remote() for _ in range(LOGICAL_CPUS)]
    calls = {actor.sleep.remote(config): actor for actor in actors}
    ends: Ends = []
    while calls:
        (call,), _ = ray.wait(list(calls))
        actor = calls.pop(call)
        ends.append((time.perf_counter(), EACH_S))
        if len(ends) + len(calls) < TRIALS:
            calls[actor.sleep.remote(config)] = actor
    return ends


def _untuned(folder: Path) -> Ends:
    """Tune with nothing but what its first page shows; a callback notes the ends."""
    ends = _Ends()
    with _environment(), redirect_stdout(io.StringIO()):
        for name in [name for name in os.environ if name.startswith(("TUNE_", "RAY_AIR_"))]:
            del os.environ[name]
        tune.Tuner(
            tune.with_resources(sleep_only, {"cpu": 1}),
            param_space={"x": tune.uniform(0, 1), "each_s": EACH_S, **gate(folder, LOGICAL_CPUS)},
            tune_config=tune.TuneConfig(num_samples=TRIALS),
            run_config=tune.RunConfig(storage_path=str(folder), callbacks=[ends]),
        ).fit()
    return ends.ended


@contextmanager
def _own_ray() -> Iterator[None]:
    with _environment():
        # Each start would have a token of its own, but a process keeps the first one that it read.
        os.environ["RAY_AUTH_MODE"] = "disabled"
        with connected(cpus=LOGICAL_CPUS):
            yield


@contextmanager
def _environment() -> Iterator[None]:
    """What the block changes in the environment ends with it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _point(row: TrialRow) -> TrialPoint:
    return TrialPoint(
        name=row.name,
        config=dict(row.config),
        execution=row.execution,
        metric=row.metric,
        latency_ms=row.latency_ms,
        latency_ci=row.latency_ci,
        speedup=row.speedup,
        bytes=row.bytes,
        status=row.status,
        reason=row.reason,
    )


def _many() -> Result:
    with tempfile.TemporaryDirectory() as folder:
        rows, trials = thousand(Path(folder))
        return [*rows, report(trials, Path(folder) / "report.html")], {}


PARTS: Mapping[str, Callable[[argparse.Namespace, Path], Result]] = {
    "scheduling": lambda arguments, _: scheduling(arguments.rounds),
    "barrier": lambda arguments, _: scheduling(arguments.rounds, BARRIERS),
    "thousand": lambda _arguments, _: _many(),
    "noise": lambda arguments, _: noise(arguments.measurements, arguments.busy_s),
    "hypervolume": hypervolume,
}
"""By name; each from the arguments and the folder of finished parts to its rows and ratios."""


def measure(arguments: argparse.Namespace) -> Result:
    """The parts that are asked for, or all that are missing; then all that are known."""
    place = nullcontext(str(arguments.work)) if arguments.work else tempfile.TemporaryDirectory()
    with place as work:
        results = Path(work).resolve() / "results"
        parts = {
            name: partial(part, arguments, results)
            for name, part in PARTS.items()
            if name != "hypervolume" or arguments.data or name in (arguments.part or ())
        }
        return run_parts(parts, results, arguments.part)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--part",
        action="append",
        choices=list(PARTS),
        help="this part only, again; may be repeated (hypervolume goes on from its finished arms)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="of the scheduling arms")
    parser.add_argument("--measurements", type=int, default=10, help="of the one variant of part noise")
    parser.add_argument("--busy-s", type=float, default=10.0, help="that trials burn between them")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keeps finished parts; goes on from them")
    add_arguments(parser)


if __name__ == "__main__":
    main("search", __doc__, measure, _more)
