"""Equal wall-clock for this search and Ray Tune's over one space, on CIFAR-10.

Part hypervolume of `benchmarks.search`: one parent, one space, one reference point, the same two cores, one
arm after the other, each from an empty store. What an arm found is judged when its time is over: all variants
that are on its front or would be if they were half as fast again. They are measured alone, in turns with the
parent in one process, so that latencies taken during a search decide nothing; and scored on rows that no
search saw, since an arm of more trials finds more luck on the rows that it chooses by.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import search_tune
from benchmarks.output import Ratio, Result
from benchmarks.parts import run_parts
from benchmarks.search_tune import Ran, Variant, load_average
from orchestrator.cluster import connected
from orchestrator.config.base import fingerprint
from orchestrator.config.data import ParquetData, Shares
from orchestrator.config.measure import Metric
from orchestrator.config.model import ResNet, ResNetKwargs
from orchestrator.config.search import SearchSettings
from orchestrator.config.training import Augment, Training
from orchestrator.data.dataset import Dataset
from orchestrator.data.load import default_cache, load, open_cached
from orchestrator.errors import NotFoundError
from orchestrator.measure.latency import Call, compare
from orchestrator.measure.metrics import score
from orchestrator.models.build import build, example_inputs
from orchestrator.pipeline.measuring import Measurer, Place
from orchestrator.runtime import execute
from orchestrator.runtime.rebuild import tensors_of
from orchestrator.search.objectives import TrialRow
from orchestrator.search.pareto import Point, front
from orchestrator.search.pareto import hypervolume as area
from orchestrator.search.ray_search import run_search
from orchestrator.search.trial import TrialJob, parent_row
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store
from orchestrator.training.loop import train

CORES = 2
ROWS = 50_000
"""Of the training file; of them the shares below are used."""
SHARES = Shares(train=0.30, validation=0.10, calibration=0.02, contract=0.58)
NETWORK = ResNet(kwargs=ResNetKwargs(depth=8, width=64, stem_stride=2))
"""Wide: with 16 channels, int8 kernels take six as long as eight, and pruning hardly pays beside int8."""
AUGMENT = Augment(flip=True, crop=2)
FAST: dict[str, Any] = {"precision": "bf16", "channels_last": True}
PARENT_EPOCHS = 40
"""With 16 it had not learned what it can, and long recoveries were 0.03 better than their parent."""
NEAR = 1.5
"""A variant is judged if it would be on the front by this factor in its latency: a trial of Tune measures
while another one trains beside it."""
MAX_DROP = 0.10
"""Variants that lose more add nothing to the hypervolume."""
SPACE: dict[str, Any] = {  # all that the steps of such a plan offer, as one writes it who does not know yet
    "plan": [
        {
            "kind": "prune_channels",
            "amount": {"range": [0.05, 0.9]},
            "criterion": {"choice": ["l2", "l1", "lamp", "fpgm", "bn_scale", "taylor", "hessian", "random"]},
            "scope": {"choice": ["layer", "isomorphic", "global"]},
        },
        {
            "kind": "recover",
            "training": {
                "epochs": {"choice": [2, 4, 8, 16]},
                "lr": {"range": [0.003, 0.3], "log": True},
                "augment": AUGMENT.plain(),
                **FAST,
                "loss": {
                    "kind": "distillation",
                    "temperature": {"range": [1, 8], "log": True},
                    "weight": {"range": [0.0, 1.0]},
                },
            },
        },
        {"choice": [None, {"kind": "clip", "method": {"choice": ["mse", "percentile"]}}]},
        {
            "choice": [
                None,
                {"kind": "bf16"},
                {"kind": "int8_weight_only"},
                {"kind": "int4_weight_only"},
                {"kind": "int8_dynamic"},
                {
                    "kind": "int8_static",
                    "observer": {"choice": ["histogram", "minmax", "percentile", "mse"]},
                },
            ]
        },
    ]
}
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, without early stop": {"early_stop": None},
    "ours, without siblings": {"siblings": 0},
    "ours, cost ignored": {"cheapest_of": None},
    "ours, in batches of 16 without overlap": {"batch": 16, "siblings": 12, "overlap": False},
}
"""Settings by arm; all but the first tell what each part is worth and are run only when asked for."""
TUNE = {"Tune, random": "random", "Tune, TPE": "tpe"}
ARMS = ("ours", *TUNE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this part."""
    group = parser.add_argument_group("part hypervolume")
    group.add_argument("--data", type=Path, help="folder with cifar10-train.parquet")
    group.add_argument("--store", type=Path, help="keeps the parent between runs")
    group.add_argument("--minutes", type=float, default=10.0, help="of each arm and seed")
    group.add_argument("--seeds", type=int, default=3)
    group.add_argument("--rows", type=int, default=ROWS, help="of the training file")
    group.add_argument("--parent-epochs", type=int, default=PARENT_EPOCHS)
    group.add_argument("--arm", action="append", choices=[*OURS, *TUNE], help="may be repeated")


def hypervolume(arguments: argparse.Namespace, results: Path) -> Result:
    """Every arm with every seed, each kept in `results`; the order of arms is rotated from seed to seed."""
    if arguments.data is None:
        raise SystemExit("part hypervolume needs --data FOLDER with cifar10-train.parquet")
    arms = list(dict.fromkeys(arguments.arm or ARMS))
    with tempfile.TemporaryDirectory() as folder:
        job, parent = _prepare(arguments, arguments.store or results.parent / "parent")
        parts = {}
        for seed in range(arguments.seeds):
            for place in range(len(arms)):
                arm = arms[(seed + place) % len(arms)]
                seeded = job.model_copy(update={"seed": seed})
                name = f"hypervolume-{seed}-{arm.replace(', ', '-').replace(' ', '-')}"
                where = Path(folder) / name
                parts[name] = partial(_alone, arm, seeded, parent, arguments.minutes, where)
        rows, _ = run_parts(parts, results)
    failed = [row["failed"] for row in rows if "failed" in row]
    if failed:
        raise RuntimeError(failed[0])
    return rows, _ratios([row for row in rows if "arm" in row])


def _alone(arm: str, job: TrialJob, parent: TrialRow, minutes: float, folder: Path) -> Result:
    """One arm with one seed, with the machine to itself."""
    folder.mkdir()
    load_before = load_average()
    with connected(cpus=CORES):
        ran = _run(arm, job, parent, 60 * minutes, folder)
    row = {
        "arm": arm,
        "seed": job.seed,
        "minutes": minutes,
        **_row(ran, job, parent),
        "load": [load_before, load_average()],
    }
    shown = {name: value for name, value in row.items() if name not in ("front", "over_time")}
    print(f"seed {job.seed}: {shown}", file=sys.stderr, flush=True)
    return [row], {}


def _prepare(arguments: argparse.Namespace, folder: Path) -> tuple[TrialJob, TrialRow]:
    """The rows, and the parent: trained once for a store."""
    settings = ParquetData(
        root=str(arguments.data), train="cifar10-train.parquet", limit=arguments.rows, shares=SHARES
    )
    data, store = load(settings, seed=0, cache=default_cache()), Store(folder)
    training = Training(epochs=arguments.parent_epochs, augment=AUGMENT, **FAST)
    key = fingerprint({"data": data.digest, "model": NETWORK.plain(), "training": training.plain()})
    name = f"search-benchmark/{key[:16]}"
    try:
        digest = store.ref(name)
    except NotFoundError:
        digest = _trained(data, training, store)
        store.set_ref(name, digest)
    job = TrialJob(
        search=_settings({}),
        parent=digest,
        store=store.location,
        data_folder=str(data.folder),
        data_digest=data.digest,
        metric=Metric(),
        seed=0,
    )
    # Its latency is a placeholder: each arm's is measured beside its variants.
    return job, parent_row(job, "parent").measured(1.0, (1.0, 1.0), 1.0, (1.0, 1.0))


def _trained(data: Dataset, training: Training, store: Store) -> str:
    torch.set_num_threads(CORES)
    module = build(NETWORK, data.signature, seed=0)
    parts = data.part("train"), data.part("validation")
    reports = train(
        module, *parts, training, signature=data.signature, metric=Metric(), seed=0, threads=CORES
    )
    for report in reports:
        print(f"parent: epoch {report.epoch + 1}: {report.metric:.4f}", file=sys.stderr, flush=True)
    draft = Draft(model=NETWORK, signature=data.signature, data=data.digest, seed=0)
    return store.put_artifact(draft, tensors_of(module.eval()))


def _settings(changed: Mapping[str, Any]) -> SearchSettings:
    """Of our arms; the others take the space, the executions and how latency is measured."""
    given = {
        "parent": "parent",
        "trials": 100_000,
        # Two that train run at once; three of four trials train nothing.
        "batch": 8,
        "siblings": 6,
        "overlap": True,
        "cheapest_of": 2,
        "space": SPACE,
        "early_stop": {"kind": "halving", "grace": 2, "factor": 3},
        "executions": ["openvino", "lowered", "eager"],
        "arms": False,
        "promise": {"max_drop": MAX_DROP},
        "driver": "pool",
    }
    return SearchSettings.model_validate({**given, **changed})


class _Over(Exception):  # noqa: N818 - no failure
    """The arm's time is over."""


def _run(arm: str, job: TrialJob, parent: TrialRow, seconds: float, folder: Path) -> Ran:
    if arm in TUNE:
        return search_tune.run(job, TUNE[arm], seconds, folder, CORES)  # type: ignore[arg-type]
    store = Store(folder / "store")
    Store(job.store).copy_artifact(job.parent, store)
    job = job.model_copy(update={"store": store.location, "search": _settings(OURS[arm])})
    return _ours(job, parent, seconds, folder)


def _ours(job: TrialJob, parent: TrialRow, seconds: float, folder: Path) -> Ran:
    """Our search in the running Ray, ended like by Ctrl-C when its time is over."""
    begun = time.monotonic()
    place = Place(Store(job.store), lambda: None, folder / "bench")
    measurer = Measurer(place, job.parent, job.search.latency)
    measurer.open()
    ended: list[tuple[float, TrialRow]] = []
    waited: list[float] = []

    def measure(rows: Sequence[TrialRow]) -> list[TrialRow]:
        since = time.monotonic()
        found = measurer(rows)
        waited.append(time.monotonic() - since)
        return found

    def told(row: TrialRow) -> None:
        if row.status == "evaluated":
            measurer.prepare(row)
        ended.append((time.monotonic() - begun, row))

    def look(running: int) -> None:
        del running
        if time.monotonic() - begun > seconds:
            raise _Over

    try:
        run_search(job, parent, measure=measure, on_event=told, on_running=look, storage=folder / "driver")
    except _Over:
        pass
    finally:
        measurer.close()
    within = [(at, row) for at, row in ended if at <= seconds]
    return Ran(
        tuple(
            Variant(at, job.store, row.digest, row.execution, row.metric, row.latency_ms, row.config)
            for at, row in within
            if row.ok
        ),
        failed=sum(row.status == "failed" for _, row in within),
        stopped=sum(row.status == "stopped" for _, row in within),
        measuring_s=sum(waited),
    )


def _row(ran: Ran, job: TrialJob, parent: TrialRow) -> dict[str, Any]:
    """What an arm found, its candidates judged again."""
    candidates = _candidates(ran.variants)
    reference, *judged = _judged([_parent(job), *candidates], job)
    curve: list[list[float]] = []
    seen: list[Point] = []
    for variant in judged:
        seen.append(Point(variant.metric, variant.latency_ms))
        value = area(seen, parent_gain=reference.metric, parent_latency_ms=1.0)
        if not curve or value > curve[-1][1]:
            curve.append([round(variant.at_s, 1), round(value, 4)])
    best = [judged[place] for place in front(seen)]
    chosen_by = [Point(old.metric, new.latency_ms) for old, new in zip(candidates, judged, strict=True)]
    return {
        "hypervolume": curve[-1][1] if curve else 0.0,
        "hypervolume_as_chosen": round(area(chosen_by, parent_gain=parent.metric, parent_latency_ms=1.0), 4),
        "finished": len(ran.variants),
        "failed_trials": ran.failed,
        "stopped": ran.stopped,
        "measuring_s": ran.measuring_s,
        "judged": len(judged),
        "parent_accuracy": reference.metric,
        "over_time": curve,
        "front": [
            {
                "at_s": round(variant.at_s, 1),
                "accuracy": variant.metric,
                "speedup": round(1 / variant.latency_ms, 2),
                "config": dict(variant.config),
            }
            for variant in best
        ],
    }


def _candidates(variants: Sequence[Variant]) -> list[Variant]:
    """Those that no other variant beats both in accuracy and, by `NEAR`, in latency; in the order found."""
    return [
        one
        for one in variants
        if not any(
            other.metric >= one.metric and other.latency_ms * NEAR < one.latency_ms for other in variants
        )
    ]


def _parent(job: TrialJob) -> Variant:
    return Variant(0.0, job.store, job.parent, "eager", 0.0, 0.0, {})


def _judged(variants: Sequence[Variant], job: TrialJob) -> list[Variant]:
    """The variants, the parent first, as nothing that a search did can have favoured them.

    Their accuracy is that on the contract part; their latency is their share of the parent's time, measured
    alone and in turns.
    """
    latency, part = job.search.latency, open_cached(Path(job.data_folder)).part("contract")
    torch.set_num_threads(latency.threads)
    loaded = {str(place): _loaded(variant, job) for place, variant in enumerate(variants)}
    inputs = example_inputs(next(iter(loaded.values())).signature, latency.batch)
    calls: dict[str, Call] = {name: partial(executable, inputs) for name, executable in loaded.items()}
    found = compare(calls, latency, baseline="0")
    return [
        replace(
            variant,
            metric=score(job.metric, execute.predict(loaded[name], part.inputs), part.targets),
            latency_ms=1 / found[name].ratio,
        )
        for name, variant in zip(loaded, variants, strict=True)
    ]


def _loaded(variant: Variant, job: TrialJob) -> execute.Executable:
    store, latency = Store(variant.store, create=False), job.search.latency
    return execute.load(
        store, variant.digest, variant.execution, threads=latency.threads, batch=latency.batch
    )


def _ratios(rows: Sequence[dict[str, Any]]) -> dict[str, Ratio]:
    """Medians over seeds, each arm against the other of the same seed; without an arm no claim."""
    by = {(row["arm"], row["seed"]): row for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    if not all((arm, seed) in by for arm in ARMS for seed in seeds):
        return {}

    def against(other: str, figure: str) -> list[float]:
        return [by["ours", seed][figure] / max(by[other, seed][figure], 1e-9) for seed in seeds]

    random, tpe = TUNE
    trials = map(min, against(random, "finished"), against(tpe, "finished"))
    return {
        "hypervolume_vs_random": Ratio(statistics.median(against(random, "hypervolume")), 1.3),
        "hypervolume_vs_tpe": Ratio(statistics.median(against(tpe, "hypervolume")), 1.1),
        "trials_per_minute": Ratio(statistics.median(trials), 2.5),
    }
