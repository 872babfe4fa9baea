"""Members with known strengths for the planner, and what it makes of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from orchestrator.config.ensemble import Member
from orchestrator.config.goal import Costs, Goal
from orchestrator.config.measure import Metric
from orchestrator.ensemble.call_cost import CallTime
from orchestrator.ensemble.candidates import Available
from orchestrator.ensemble.crossfit import Evidence
from orchestrator.ensemble.planner import Students, Survey, survey

Outputs = dict[Member, npt.NDArray[np.float32]]
COSTS = Costs(batches=(8,), placements=("fused",))


def member(name: str) -> Member:
    return Member(name=name, digest=name.encode().hex().ljust(64, "0"))


def noise(
    names: str, rows: int = 400, classes: int = 4, seed: int = 0
) -> tuple[Outputs, npt.NDArray[np.int64]]:
    """Members that know nothing, one a letter."""
    rng = np.random.default_rng(seed)
    found = {member(name): rng.normal(size=(rows, classes)).astype(np.float32) for name in names}
    return found, rng.integers(classes, size=rows)


def skilled(
    skills: Mapping[str, float], rows: int = 600, classes: int = 4, seed: int = 0
) -> tuple[Outputs, npt.NDArray[np.int64]]:
    """Members whose errors are independent; a greater skill errs less."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(classes, size=rows)
    found = {
        member(name): (rng.normal(size=(rows, classes)) + skill * np.eye(classes)[targets]).astype(np.float32)
        for name, skill in skills.items()
    }
    return found, targets


def teacher_and_student(rows: int = 1000, seed: int = 0) -> tuple[Outputs, npt.NDArray[np.int64]]:
    """`big` is right on every row but a few; `tiny` on the same nine tenths, and it knows which."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(3, size=rows)
    truth = np.eye(3)[targets]
    hard = rng.random(rows) < 0.1
    wrong = rng.random(rows) < 0.02
    big = 6 * np.where(wrong[:, None], np.roll(truth, 1, axis=1), truth)
    tiny = np.where(hard[:, None], 0.0, big) + 0.3 * rng.normal(size=truth.shape)
    return {member("tiny"): tiny.astype(np.float32), member("big"): big.astype(np.float32)}, targets


def pool_of(outputs: Outputs, ms: Mapping[str, float], **more: Mapping[str, object]) -> list[Available]:
    """Models whose call of 8 rows takes `ms`; a call of one row a quarter of it."""
    return [
        Available(
            one,
            {
                1: CallTime({1: ms[one.name] / 4}, tail=1.2),
                8: CallTime({1: ms[one.name] / 4, 8: ms[one.name]}, tail=1.2),
            },
            bytes=int(1000 * ms[one.name]),
            macs=1e6 * ms[one.name],
            family=str(more.get("family", {}).get(one.name, one.name)),
            compressed=bool(more.get("compressed", {}).get(one.name, False)),
        )
        for one in outputs
    ]


def planned(
    outputs: Outputs,
    targets: npt.NDArray[np.int64],
    ms: Mapping[str, float],
    goal: Goal = Goal(),  # noqa: B008 - frozen
    *,
    costs: Costs = COSTS,
    metric: Metric = Metric(),  # noqa: B008 - frozen
    students: Students | None = None,
    **more: Mapping[str, object],
) -> tuple[Survey, Evidence]:
    """The plan of such models, and what it was made on."""
    evidence = Evidence(outputs, targets, metric, "classification")
    pool = pool_of(outputs, ms, **more)
    return survey(pool, evidence, goal, costs, walk_ms=0.0, students=students or {}), evidence
