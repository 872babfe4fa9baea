"""Throughput of one network in every precision and execution, whole and pruned, one thread, batch 32.

Weights are random: speed does not depend on them. All rows are measured interleaved in one run.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import numpy as np

from benchmarks.output import Ratio, Result, main
from orchestrator.compression.plan import Context, apply_plan
from orchestrator.config.measure import LatencySettings
from orchestrator.config.model import ResNet9, ResNet9Kwargs
from orchestrator.config.signature import Signature
from orchestrator.config.steps import Bf16, ChannelPruning, Plan, StaticInt8
from orchestrator.measure.artifacts import measure_artifacts
from orchestrator.models.build import build
from orchestrator.runtime.execute import executions
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store

SIGNATURE = Signature(
    task="classification",
    input_shape=(3, 32, 32),
    input_dtype="uint8",
    outputs=10,
    mean=(125.0, 123.0, 114.0),
    std=(63.0, 62.0, 67.0),
)
MODEL = ResNet9(kwargs=ResNet9Kwargs(width=32, whiten=True))
"""The teacher of `examples/cifar10.yaml` without `mirror`, which doubles the work of every form alike."""
SETTINGS = LatencySettings(batch=32, threads=1, blocks=21, block_ms=100.0)
PLANS: dict[str, Plan] = {
    "fp32": (),
    "bf16": (Bf16(),),
    "int8": (StaticInt8(rows=64),),
    "pruned 37.5 %": (ChannelPruning(amount=0.375),),
    "pruned 37.5 % bf16": (ChannelPruning(amount=0.375), Bf16()),
    "pruned 37.5 % int8": (ChannelPruning(amount=0.375), StaticInt8(rows=64)),
    "pruned 50 % bf16": (ChannelPruning(amount=0.5), Bf16()),
    "pruned 50 % int8": (ChannelPruning(amount=0.5), StaticInt8(rows=64)),
}
GOAL = 8.0
"""Times the teacher's eager fp32 throughput (the CIFAR-10 goal)."""


def measure(arguments: argparse.Namespace) -> Result:  # noqa: ARG001
    """Every plan in every execution that it supports."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        module = build(MODEL, SIGNATURE, seed=0)
        draft = Draft(model=MODEL, signature=SIGNATURE, data="0" * 64, seed=0, what={})
        parent = store.put_artifact(draft, module.state_dict())
        rows = np.random.default_rng(0).integers(0, 256, (64, 3, 32, 32), dtype=np.uint8)
        context = Context(calibration=rows, train=None, validation=None, seed=0, threads=1, allowed=())
        digests = {
            name: apply_plan(store, parent, plan, context) if plan else parent for name, plan in PLANS.items()
        }
        subjects = [
            (name, digest, execution)
            for name, digest in digests.items()
            for execution in executions(store.manifest(digest))
        ]
        records = measure_artifacts(
            store, parent, [(digest, execution) for _, digest, execution in subjects], SETTINGS
        )
        table = [
            {"plan": name, **_row(record)} for (name, _, _), record in zip(subjects, records, strict=True)
        ]
    ratios = [(str(row["plan"]), float(row["ratio"])) for row in table if "ratio" in row]
    best = max(ratio for _, ratio in ratios)
    whole = max(ratio for plan, ratio in ratios if not plan.startswith("pruned"))
    return table, {
        "best pruned variant over eager fp32": Ratio(best, GOAL),
        "best whole variant over eager fp32": Ratio(whole, 4.0),
    }


def _row(record: dict[str, Any]) -> dict[str, Any]:
    if "error" in record:
        return {"execution": record["execution"], "error": record["error"]}
    return {key: record[key] for key in ("execution", "median_ms", "ci", "ratio", "ratio_ci")}


if __name__ == "__main__":
    main("execution", __doc__, measure)
