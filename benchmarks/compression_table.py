"""The table of a comparison: models of a store and peers, their answers, and their latency in one run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.interleaved import Here, Subject, interleave
from orchestrator.config.data import PartName
from orchestrator.config.measure import Execution
from orchestrator.config.run import RunConfig
from orchestrator.config.steps import Bf16, Distill
from orchestrator.data.dataset import Dataset, Part
from orchestrator.errors import ExecutionError, NotFoundError
from orchestrator.measure.cost import count
from orchestrator.measure.latency import ratio
from orchestrator.runtime import execute
from orchestrator.runtime.bf16 import has_bf16_kernels
from orchestrator.runtime.execute import Executable, executions
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store

BATCHES = (32, 1)
HELD_OUT: tuple[PartName, ...] = ("validation", "contract")
ROUNDS, BLOCK_MS = 9, 60.0
ALLOWED_DROP = 0.01
"""Of accuracy."""


@dataclass(frozen=True)
class Entry:
    """A line of the table before it is timed."""

    name: str
    subject: Subject
    own: bool
    """Of this project, not a peer's."""
    execution: str = ""
    bytes: int = 0
    flops: float = 0.0
    """Of a row, two a multiply-accumulate, as ModelOpt counts."""
    held_out: NDArray[np.bool_] | None = None
    """Whether each validation and contract row is answered rightly; peers are asked for test rows alone."""
    test: float = 0.0


@dataclass(frozen=True)
class Bench:
    """What everything is made from."""

    config: RunConfig
    store: Store
    data: Dataset
    folder: Path
    """Of the peers."""

    def digest(self, name: str) -> str:
        """Of a model or variant of the run file."""
        return self.store.ref(f"{self.config.name}/{name}")


def stored(bench: Bench, names: Iterable[str], eager: str | None = None) -> Iterator[Entry]:
    """Models and variants of the run file, each in every execution that it has.

    Args:
        bench: where they are.
        names: of models and variants; those that the store lacks are left out.
        eager: the one of them that stands for a peer, which leaves an eager model.
    """
    for name in names:
        try:
            digest = bench.digest(name)
        except NotFoundError as error:
            print(f"left out: {name}: {error}", file=sys.stderr)
            continue
        manifest = bench.store.manifest(digest)
        if any(isinstance(step, Bf16) for step in manifest.plan) and not has_bf16_kernels():
            print(f"left out: {name}: this CPU has no bfloat16 kernels", file=sys.stderr)
            continue
        own = name != eager
        for execution in executions(manifest) if own else ("eager",):
            print(f"loading {name} ({execution})", file=sys.stderr)
            subject = Here(loader(bench.store, digest, execution))
            try:
                held_out = [_right(subject, bench.data.part(part), bench.folder) for part in HELD_OUT]
            except ExecutionError as error:
                print(f"left out: {name} ({execution}): {error}", file=sys.stderr)
                continue
            yield Entry(
                name=name,
                subject=subject,
                own=own,
                execution=execution,
                bytes=bench.store.artifact_bytes(digest),
                flops=2 * float(_macs(bench, name)),
                held_out=np.concatenate(held_out),
                test=accuracy(subject, bench.data.part("test"), bench.folder),
            )


def descends(config: RunConfig, name: str, ancestor: str) -> bool:
    """Whether a model or variant of the run file is another one, or was made from it step by step."""
    while name != ancestor and name in config.variants:
        variant = config.variants[name]
        if variant.plan and isinstance(variant.plan[0], Distill):
            return False
        name = variant.parent
    return name == ancestor


def loader(store: Store, digest: str, execution: Execution) -> Callable[[int], Executable]:
    """From a batch size to the artifact as it runs for it, with one thread."""
    return lambda batch: execute.load(store, digest, execution, threads=1, batch=batch)


def _macs(bench: Bench, name: str) -> int:
    """Multiply-accumulates of a row; those of an int8 variant are its parent's."""
    while name in bench.config.variants:
        rebuilt = rebuild(bench.store, bench.digest(name))
        if not isinstance(rebuilt.module, torch.fx.GraphModule):
            break
        name = bench.config.variants[name].parent
    rebuilt = rebuild(bench.store, bench.digest(name))
    return count(rebuilt.module, rebuilt.manifest.signature).macs


def accuracy(subject: Subject, part: Part, folder: Path) -> float:
    """Share of a part's rows that are answered rightly; `folder` is for what a peer answers."""
    return float(_right(subject, part, folder).mean())


def _right(subject: Subject, part: Part, folder: Path) -> NDArray[np.bool_]:
    outputs = subject.predict(part.inputs, folder / "outputs.npy")
    return np.asarray(outputs.argmax(1) == part.targets)


def timed(entries: list[Entry], parent_name: str) -> list[dict[str, Any]]:
    """The table: every entry's figures, its latencies and how many times as fast as the parent it is."""
    parent = next(entry for entry in entries if entry.name == parent_name and entry.execution == "eager")
    rows = {id(entry): _row(entry, parent) for entry in entries}
    for batch in BATCHES:
        named = {str(id(entry)): entry.subject for entry in entries}
        samples = interleave(named, batch, rounds=ROUNDS, block_ms=BLOCK_MS)
        baseline = samples[str(id(parent))].blocks
        for entry in entries:
            blocks = samples[str(id(entry))].blocks
            speedup, interval = ratio(baseline, blocks)
            rows[id(entry)] |= {
                f"b{batch}_ms": float(np.median(blocks)),
                f"b{batch}_speedup": speedup,
                f"b{batch}_ci": list(interval),
            }
    return list(rows.values())


def _row(entry: Entry, parent: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"name": entry.name, "own": entry.own, "accuracy": entry.test}
    row["drop"] = parent.test - entry.test
    if entry.own:
        assert parent.held_out is not None
        assert entry.held_out is not None
        lost = parent.held_out.astype(float) - entry.held_out
        row |= {
            "execution": entry.execution,
            "held_out_drop": float(lost.mean()),
            "held_out_error": float(lost.std() / np.sqrt(len(lost))),
            "bytes": entry.bytes,
            "bytes_ratio": parent.bytes / entry.bytes,
            "mflops": entry.flops / 1e6,
        }
    return row
