"""How well a latency repeats: one variant measured again and again by the bench actor in a busy sweep.

Trials burn every core between two measurements, and pause while one is made, as in a search; what will be
measured is loaded while they burn. A latency is recorded once and then read, so each measurement is of
an artifact of its own that differs from the others in its seed alone. Noise is the range of the medians over
their median: of the latency as it is reported, and for comparison of the same as it was at that moment.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from benchmarks.output import Ratio, Result
from benchmarks.search_study import SPACE, Study, made_up
from benchmarks.search_trials import burn_and_keep
from orchestrator.cluster import connected
from orchestrator.compression.plan import Context, apply_plan
from orchestrator.config.measure import Execution, Target
from orchestrator.config.model import ResNet, ResNetKwargs
from orchestrator.config.search import SearchSettings
from orchestrator.config.signature import Signature
from orchestrator.config.steps import ChannelPruning, Plan, StaticInt8
from orchestrator.measure import bench_actor
from orchestrator.models.build import build, example_rows
from orchestrator.runtime.rebuild import tensors_of
from orchestrator.search.objectives import TrialRow
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store

GOAL = 0.05
NETWORK = ResNet(kwargs=ResNetKwargs(depth=8, width=16, stem_stride=2))
SIGNATURE = Signature(
    task="classification",
    input_shape=(3, 32, 32),
    input_dtype="uint8",
    outputs=10,
    mean=(128.0, 128.0, 128.0),
    std=(64.0, 64.0, 64.0),
)
VARIANTS: dict[str, tuple[Plan, Execution]] = {
    "fp32, eager": ((), "eager"),
    "half of the channels, eager": ((ChannelPruning(amount=0.5),), "eager"),
    "int8, lowered": ((StaticInt8(),), "lowered"),
}


def noise(measurements: int, busy_s: float) -> Result:
    """Medians of each variant, and how far they lie apart.

    Args:
        measurements: of each variant.
        busy_s: how long all cores are busy before each.
    """
    cores = len(os.sched_getaffinity(0))
    settings = SearchSettings.model_validate(
        {"trials": cores * measurements, "batch": cores, "sampler": "random", "space": SPACE, "arms": False}
    )
    with tempfile.TemporaryDirectory() as folder, connected(cpus=cores):
        sweep = _Sweep(Store(Path(folder) / "measured"), measurements)
        Study(Path(folder), settings, measure=sweep).run("pool", busy_s, trainable=burn_and_keep)
        ray.kill(sweep.actor)
    rows: list[dict[str, Any]] = []
    for name, found in sweep.found.items():
        reported = [float(record["median_ms"]) for record in found]
        rows.append(
            {
                "part": "noise",
                "variant": name,
                "measurements": len(found),
                "busy_s": busy_s,
                "medians_ms": [round(value, 4) for value in reported],
                "own_ms": [round(float(record["own_ms"]), 4) for record in found],
                "rounds": [int(record["rounds"]) for record in found],
                "median_ms": float(np.median(reported)),
                "spread": spread(reported),
                "own_spread": spread([float(record["own_ms"]) for record in found]),
                "paused_s_each": float(np.median(sweep.seconds)),
                "load": os.getloadavg()[0],
            }
        )
    worst = max(rows, key=lambda row: float(row["spread"]))
    return rows, {"bench_noise": Ratio(worst["spread"], GOAL, at_most=True, of=str(worst["variant"]))}


def spread(values: Sequence[float]) -> float:
    """Range over median."""
    return (max(values) - min(values)) / float(np.median(values))


class _Sweep:
    """Measures the next artifact of each variant whenever a batch of trials has ended."""

    def __init__(self, store: Store, measurements: int) -> None:
        self.found: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
        self.seconds: list[float] = []
        parents = [_network(store, seed) for seed in range(measurements + 1)]
        self._baseline, self._target = parents.pop(), Target()
        self._waiting = [_variants(store, parent) for parent in parents]
        self.actor = bench_actor.start(store.location, cpus=0, target=self._target)
        # As the parent of a search: first and alone.
        ray.get(self.actor.measure.remote(self._baseline, [(self._baseline, "eager")]))
        self._prepare()

    def __call__(self, rows: Sequence[TrialRow]) -> Sequence[TrialRow]:
        """Made-up latencies for the trials, which are none; the real ones are kept."""
        subjects = self._waiting.pop(0)
        begun = time.perf_counter()
        records: list[dict[str, Any]] = ray.get(
            self.actor.measure.remote(self._baseline, list(subjects.values()))
        )
        self.seconds.append(time.perf_counter() - begun)
        for name, record in zip(subjects, records, strict=True):
            self.found[name].append(record)
        self._prepare()
        return made_up(rows)

    def _prepare(self) -> None:
        """Load what comes next, beside the trials."""
        if self._waiting:
            self.actor.prepare.remote(self._baseline, list(self._waiting[0].values()))


def _network(store: Store, seed: int) -> str:
    """The same weights under a digest of their own."""
    module = build(NETWORK, SIGNATURE, seed=0).eval()
    return store.put_artifact(
        Draft(model=NETWORK, signature=SIGNATURE, data="none", seed=seed), tensors_of(module)
    )


def _variants(store: Store, parent: str) -> dict[str, tuple[str, Execution]]:
    torch.set_num_threads(1)
    rows = example_rows(SIGNATURE, 256).numpy()
    context = Context(calibration=rows, seed=0, data="none")
    return {
        name: (apply_plan(store, parent, plan, context), execution)
        for name, (plan, execution) in VARIANTS.items()
    }
