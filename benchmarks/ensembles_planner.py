"""The planner's pick beside the whole ensemble as one compiled graph: a part of `benchmarks.ensembles`."""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.ensembles_bench import (
    BATCH,
    LATENCY,
    MIX,
    TEAM,
    THREADS,
    Bench,
    accuracy,
    fitted,
    replayed,
    say,
)
from benchmarks.output import Ratio, Result
from orchestrator.config.ensemble import Member, Node
from orchestrator.config.goal import Costs, Goal
from orchestrator.ensemble.call_cost import CallTime
from orchestrator.ensemble.candidates import Available
from orchestrator.ensemble.crossfit import Evidence
from orchestrator.ensemble.goals import choose
from orchestrator.ensemble.planner import survey
from orchestrator.ensemble.tree import distinct, predict, replay
from orchestrator.errors import ExecutionError
from orchestrator.measure.latency import Latency, compare
from orchestrator.runtime.compiled import compile_to
from orchestrator.runtime.execute import Executable, executions
from orchestrator.runtime.rebuild import rebuild


def planning(bench: Bench) -> Result:
    """The planner's pick for the ensemble's accuracy, beside that ensemble as one compiled graph."""
    test = bench.data.part("test").targets
    models = _models(bench)
    rows = np.ascontiguousarray(bench.data.part("validation").inputs[:BATCH])
    pool = [
        Available(
            member,
            {BATCH: times},
            bytes=bench.store.artifact_bytes(member.digest),
            macs=bench.macs(member.name),
            family=member.name.removesuffix("-int8").removesuffix("-bf16"),
            compressed="-int8" in member.name or "-bf16" in member.name,
        )
        for member, times in _call_times(models, rows).items()
    ]
    said = {member: bench.said["validation"][_key(member)] for member in models}
    evidence = Evidence(said, bench.data.part("validation").targets, bench.config.metric, "classification")
    costs = Costs(batches=(BATCH,), threads=THREADS, placements=("fused",))
    found = survey(pool, evidence, Goal(max_drop=0.0), costs, walk_ms=0.05, students={})
    picked = choose(found, Goal(max_drop=0.0)).point
    tree = evidence.fitted(picked.judged.candidate)
    answer = replay(tree, {m: bench.said["test"][_key(m)] for m in distinct(tree)}, "classification")
    timed = _side_by_side(bench, tree, models, rows)
    drop = accuracy(replayed(bench, fitted(bench, MIX)), test) - accuracy(answer, test)
    value = timed["pick"].median_ms / timed["fused"].median_ms
    row = {
        "name": "planner's pick",
        "candidates": len(found.points),
        "tree": str(tree.plain()),
        "ms": timed["pick"].median_ms,
        "expected_ms": picked.latency_ms,
        "fused_ms": timed["fused"].median_ms,
        "drop": drop,
    }
    return [row], {"plan_latency": Ratio(value, 0.35, at_most=True, of=f"drop on test rows {drop:.4f}")}


def _call_times(models: dict[Member, Executable], rows: NDArray[Any]) -> dict[Member, CallTime]:
    """Calls of one row and of a whole batch, all interleaved."""
    sizes = {1: np.ascontiguousarray(rows[:1]), BATCH: rows}
    calls: dict[str, Callable[[], object]] = {
        f"{_key(member)} {size}": functools.partial(model, few)
        for member, model in models.items()
        for size, few in sizes.items()
    }
    found = compare(calls, LATENCY, baseline=f"{_key(next(iter(models)))} {BATCH}")
    return {
        member: CallTime({size: found[f"{_key(member)} {size}"].median_ms for size in sizes})
        for member in models
    }


def _side_by_side(
    bench: Bench, tree: Node, models: dict[Member, Executable], rows: NDArray[Any]
) -> dict[str, Latency]:
    """The pick in this process, and the whole ensemble as one graph."""
    with tempfile.TemporaryDirectory() as folder:
        fused = _fused(bench, Path(folder))
        tensor = torch.from_numpy(rows)
        calls: dict[str, Callable[[], object]] = {
            "fused": lambda: fused(tensor),
            "pick": functools.partial(predict, tree, models, rows, "classification"),
        }
        return compare(calls, LATENCY, baseline="fused")


def _key(member: Member) -> str:
    return f"{member.name} ({member.execution})"


def _models(bench: Bench) -> dict[Member, Executable]:
    """The four and every variant in every execution that it runs in here."""
    found = {}
    for name in (*TEAM, *bench.config.variants):
        digest = bench.digest(name)
        for execution in executions(bench.store.manifest(digest)):
            member = Member(name=name, digest=digest, execution=execution)
            try:
                found[member] = _say_in(bench, member)
            except ExecutionError as error:
                print(f"left out: {_key(member)}: {error}", file=sys.stderr)
    return found


def _say_in(bench: Bench, member: Member) -> Executable:
    return say(bench, _key(member), member)


class _Together(nn.Module):
    """The mean of the members' probabilities as one graph."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, rows: Tensor) -> Tensor:
        """Raw rows -> log-probabilities."""
        parts = [member(rows).float().log_softmax(1) for member in self.members]
        return torch.stack(parts).logsumexp(0)


def _fused(bench: Bench, folder: Path) -> Callable[[Tensor], Tensor]:
    """The four as one compiled graph, in bfloat16 or float32, whichever is faster here."""
    example = torch.from_numpy(np.ascontiguousarray(bench.data.part("validation").inputs[:BATCH]))
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    for kind, ending in (("bf16", "-bf16"), ("fp32", "")):
        modules = [rebuild(bench.store, bench.digest(f"{name}{ending}")).module for name in TEAM]
        path = folder / f"{kind}.pt2"
        compile_to(path, _Together(modules).eval(), example, THREADS)
        found[kind] = torch._inductor.aoti_load_package(str(path))
    calls: Mapping[str, Callable[[], object]] = {
        kind: functools.partial(call, example) for kind, call in found.items()
    }
    timed = compare(calls, LATENCY, baseline="fp32")
    return found[min(timed, key=lambda kind: timed[kind].median_ms)]
