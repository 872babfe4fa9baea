"""What Ray costs a run on one machine: train, fit ensembles and evaluate, through Ray and in this process.

Both arms do the same work in the same order with all cores for one model at a time, into stores of their
own, and must end with the same digests. Started processes, checkpoints through Ray Train and waiting are the
difference.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from benchmarks.output import Ratio, Result, main
from orchestrator.config.load import validate
from orchestrator.config.run import RunConfig
from orchestrator.pipeline.context import open_run
from orchestrator.pipeline.run import execute
from orchestrator.pipeline.training import job_of
from orchestrator.progress import Progress
from orchestrator.store.store import Store
from orchestrator.training.fitting import fit

GOAL = 1.15
ROWS = "benchmarks.overhead:rows"
EXAMPLE = Path(__file__).parents[1] / "examples" / "cifar10.yaml"
MODELS = ("one", "two", "three")


def rows(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Made-up images [N, 3, 32, 32] of ten classes, for where CIFAR-10 is not at hand."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, count)
    centres = np.random.default_rng(9).normal(size=(10, 3, 8, 8)).repeat(4, 2).repeat(4, 3)
    images = 128 + 40 * centres[labels] + 40 * random.normal(size=(count, 3, 32, 32))
    return images.clip(0, 255).astype(np.uint8), labels


def settings(data: str | None, count: int, epochs: int) -> RunConfig:
    """Three networks and their mix."""
    source: dict[str, Any] = {"kind": "custom", "dataset": ROWS, "kwargs": {"count": count}}
    if data is not None:
        example = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))["data"]
        source = {**example, "root": data, "limit": count}
    training = {"epochs": epochs, "batch_size": 128, "lr": 0.05}
    model = {"factory": "cnn", "kwargs": {"channels": [32, 64], "hidden": 128}}
    values = {
        "name": "overhead",
        "seed": 1,
        "data": source,
        "models": {
            name: {"model": model, "training": training, "resources": {"cpus": os.cpu_count()}, "seed": place}
            for place, name in enumerate(MODELS)
        },
        "ensembles": {"mix": {"kind": "weighted_mix", "members": list(MODELS)}},
        "latency": {"blocks": 5, "block_ms": 5},
        "serving": None,
    }
    return validate(RunConfig, values, "overhead.yaml")


def through_ray(run: RunConfig, folder: Path) -> None:
    """As `orchestrator evaluate` does it; Ray's start and end count."""
    execute(run, until="evaluate", store=str(folder / "store"))


def in_process(run: RunConfig, folder: Path) -> None:
    """The same trainings by a plain function, then the stages that take them from the store."""
    root = str(folder / "store")
    opened = open_run(run, store=root, progress=Progress(), cluster=lambda: None)
    for name, entry in run.models.items():
        job = job_of(opened, name, entry, {})
        opened.store.stage(job.key(), partial(fit, job, opened.store, lambda _: None))
    execute(run, until="evaluate", store=root)


ARMS: dict[str, Callable[[RunConfig, Path], None]] = {"ray": through_ray, "process": in_process}


def measure(arguments: argparse.Namespace) -> Result:
    """Both arms in turns."""
    run = settings(arguments.data, arguments.rows, arguments.epochs)
    found: dict[str, list[float]] = {name: [] for name in ARMS}
    digests: set[tuple[str, ...]] = set()
    with tempfile.TemporaryDirectory() as cache, _environment(cache):
        for turn in range(arguments.rounds):
            for name in list(ARMS)[:: 1 if turn % 2 else -1]:
                with tempfile.TemporaryDirectory() as folder:
                    started = time.perf_counter()
                    ARMS[name](run, Path(folder))
                    found[name].append(time.perf_counter() - started)
                    store = Store(Path(folder) / "store")
                    digests.add(tuple(store.ref(f"overhead/{model}") for model in MODELS))
                print(f"round {turn + 1}: {name}: {found[name][-1]:.1f} s", file=sys.stderr, flush=True)
    seconds = {name: statistics.median(times) for name, times in found.items()}
    table = [
        {"arm": name, "seconds": seconds[name], "all_s": [round(each, 2) for each in times]}
        for name, times in found.items()
    ]
    value = seconds["ray"] / seconds["process"]
    of = f"{len(digests)} set of digests, load {os.getloadavg()[0]:.1f}"
    return table, {"ray_overhead": Ratio(value, GOAL, at_most=True, holds=len(digests) == 1, of=of)}


@contextmanager
def _environment(cache: str) -> Iterator[None]:
    """One cache of rows for all, and one auth mode: a process keeps the first token that it read."""
    before = dict(os.environ)
    os.environ |= {"ORCHESTRATOR_CACHE": cache, "RAY_AUTH_MODE": "disabled"}
    for name in ("RAY_ADDRESS", "ORCHESTRATOR_STORE"):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", help="folder of CIFAR-10 as Parquet (examples/cifar10.yaml); else made-up rows"
    )
    parser.add_argument("--rows", type=int, default=8000, help="of the training file")
    parser.add_argument("--epochs", type=int, default=6, help="of each of the three models")
    parser.add_argument("--rounds", type=int, default=2, help="of both arms")


if __name__ == "__main__":
    main("overhead", __doc__, measure, _more)
