"""Make the models and variants of run files without Ray, each in a process of its own, several at once.

For a machine with one GPU and nothing but torch: `orchestrator run` makes the same models on a cluster. What
has a ref `<run>/<name>` in the store is left as it is, so a second call makes what the first one lacked::

    python -m benchmarks.models benchmarks/compression.yaml --data FOLDER --store STORE --gpus 1 --at-once 12
    python -m benchmarks.models benchmarks/compression.yaml --data FOLDER --store STORE

With `--gpus 1` variants that int8 kernels of a CPU run are left for the second call, on the machine that will
serve them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from orchestrator.compression.plan import Context, apply_plan
from orchestrator.config.load import load_run
from orchestrator.config.run import ModelEntry, RunConfig
from orchestrator.config.steps import DynamicInt8, StaticInt8, epochs_of, others_of, with_others
from orchestrator.config.variant import VariantEntry
from orchestrator.data.dataset import Dataset
from orchestrator.data.load import default_cache, load
from orchestrator.errors import NotFoundError
from orchestrator.store.store import Store
from orchestrator.training.device import device_of
from orchestrator.training.fitting import fit
from orchestrator.training.job import TrainJob
from orchestrator.training.state import EpochReport

POLL_S = 0.1


@dataclass(frozen=True)
class Task:
    """One model or variant of one run file."""

    run_file: str
    name: str
    ref: str
    needs: tuple[str, ...]
    """Refs of what it is made from."""
    epochs: int


def main() -> int:
    """The command line; the number of tasks that failed."""
    arguments = _arguments()
    if arguments.one:
        _make(arguments)
        return 0
    store = Store(arguments.store)
    tasks = [task for path in arguments.run_files for task in _tasks(path, arguments)]
    waiting = [task for task in tasks if _digest(store, task.ref) is None]
    configs = [_config(path, arguments) for path in arguments.run_files]
    with ThreadPoolExecutor(len(configs)) as pool:  # rows are decoded once, before anyone needs them
        list(pool.map(_dataset, configs))
    print(f"{len(tasks) - len(waiting)} of {len(tasks)} are in the store", flush=True)
    return _run_all(waiting, store, arguments)


def _tasks(path: str, arguments: argparse.Namespace) -> list[Task]:
    config = _config(path, arguments)

    def ref(name: str) -> str:
        given = config.models[name].ref if name in config.models else None
        own = name in config.models or name in config.variants
        return given or (f"{config.name}/{name}" if own else name)

    tasks = [
        Task(
            path,
            name,
            ref(name),
            () if entry.teacher is None else (ref(entry.teacher),),
            entry.training.epochs,
        )
        for name, entry in config.models.items()
        if entry.ref is None
    ]
    for name, variant in config.variants.items():
        if name in config.taught():  # no ensemble is fitted here
            continue
        if arguments.gpus and any(isinstance(step, StaticInt8 | DynamicInt8) for step in variant.plan):
            continue
        others = [other for step in variant.plan for other in others_of(step)]
        needs = tuple(map(ref, (variant.parent, *others)))
        tasks.append(Task(path, name, ref(name), needs, epochs_of(variant.plan)))
    return sorted(tasks, key=lambda task: -task.epochs)


def _run_all(waiting: list[Task], store: Store, arguments: argparse.Namespace) -> int:
    """Start each task once what it needs is in the store; one that failed fails those that need it."""
    logs = Path(arguments.logs)
    logs.mkdir(parents=True, exist_ok=True)
    running: dict[Task, tuple[subprocess.Popen[bytes], float]] = {}
    failed = 0
    while waiting or running:
        for task in [task for task in waiting if all(_digest(store, need) for need in task.needs)]:
            if len(running) < arguments.at_once:
                waiting.remove(task)
                running[task] = (_start(task, logs, arguments), time.monotonic())
        for task, (process, started) in list(running.items()):
            if process.poll() is None:
                continue
            del running[task]
            failed += process.returncode != 0
            ended = "" if process.returncode == 0 else f"FAILED ({process.returncode}): "
            took = time.monotonic() - started
            print(f"{task.ref}: {ended}{_last_line(logs, task)} ({took:.0f} s)", flush=True)
        if not running and waiting and not any(all(_digest(store, n) for n in t.needs) for t in waiting):
            print(f"not made, for what they need is missing: {', '.join(task.ref for task in waiting)}")
            return failed + len(waiting)
        time.sleep(POLL_S)
    return failed


def _start(task: Task, logs: Path, arguments: argparse.Namespace) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.models", task.run_file, "--one", task.name]
    command += ["--data", arguments.data, "--store", arguments.store, "--gpus", str(arguments.gpus)]
    command += [part for override in arguments.set for part in ("--set", override)]
    with _log(logs, task).open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ)


def _log(logs: Path, task: Task) -> Path:
    return logs / f"{task.ref.replace('/', '-')}.log"


def _last_line(logs: Path, task: Task) -> str:
    lines = _log(logs, task).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


def _make(arguments: argparse.Namespace) -> None:
    """One task, in this process."""
    (path,) = arguments.run_files
    config, store = _config(path, arguments), Store(arguments.store, create=False)
    maker, name = _Maker(config, store, _dataset(config), arguments.gpus), arguments.one
    if name in config.models:
        digest = maker.train(name, config.models[name])
    else:
        digest = maker.compress(config.variants[name])
    store.set_ref(f"{config.name}/{name}", digest)


@dataclass(frozen=True)
class _Maker:
    """Makes the models of one run file in this process."""

    config: RunConfig
    store: Store
    dataset: Dataset
    gpus: float

    def train(self, name: str, entry: ModelEntry) -> str:
        resources = entry.resources.model_copy(update={"gpus": self.gpus or entry.resources.gpus})
        job = TrainJob(
            name=name,
            entry=entry.model_copy(update={"resources": resources}),
            data_folder=str(self.dataset.folder),
            store=self.store.location,
            seed=self.config.seed_of(entry),
            metric=self.config.metric,
            allowed=self.config.allow,
            teacher_digest=None if entry.teacher is None else self._digest_of(entry.teacher),
        )
        return self.store.stage(job.key(), lambda: fit(job, self.store, self._tell))

    def compress(self, entry: VariantEntry) -> str:
        context = Context(
            seed=self.config.seed,
            threads=entry.cpus,
            device=device_of(self.gpus or entry.gpus),
            data=self.dataset.digest,
            calibration=self.dataset.part("calibration").inputs,
            train=self.dataset.part("train"),
            validation=self.dataset.part("validation"),
            metric=self.config.metric,
            allowed=self.config.allow,
            on_epoch=self._tell,
        )
        plan = tuple(with_others(step, self._digest_of) for step in entry.plan)
        return apply_plan(self.store, self._digest_of(entry.parent), plan, context)

    def _tell(self, report: EpochReport) -> None:
        print(report.text(self.config.metric.label), flush=True)

    def _digest_of(self, name: str) -> str:
        entry = self.config.models.get(name)
        ref = entry.ref if entry is not None and entry.ref else f"{self.config.name}/{name}"
        return _digest(self.store, ref) or self.store.resolve(name)


def _dataset(config: RunConfig) -> Dataset:
    return load(config.data, seed=config.seed, cache=default_cache())


def _digest(store: Store, ref: str) -> str | None:
    try:
        return store.ref(ref)
    except NotFoundError:
        return None


def _config(path: str, arguments: argparse.Namespace) -> RunConfig:
    return load_run(Path(path), [f"data.root={arguments.data}", *arguments.set])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_files", nargs="+", metavar="RUN_FILE")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="of the data files")
    parser.add_argument("--store", required=True, metavar="STORE", help="where results go")
    parser.add_argument("--gpus", type=float, default=0.0, help="train on a GPU (1), or the CPU (0)")
    parser.add_argument("--at-once", type=int, default=1, help="processes side by side")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")
    parser.add_argument("--logs", default="logs", metavar="FOLDER", help="a log of each model")
    parser.add_argument("--one", metavar="NAME", help="make this one alone, in this process")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
