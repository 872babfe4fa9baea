"""A ResNet-20 on CIFAR-10, compressed by this project and by its peers, each on one thread.

`benchmarks/compression.yaml` says how the models are made; here they are compared: accuracy on test rows,
latency of all in one interleaved run, bytes. Peers (`benchmarks/peers`) start from the same ResNet-20; those
with packages of their own need `make peers`. The fastest and the smallest variant are chosen by validation
and contract rows together: of those that lose at most 0.01 there, with a standard error to spare; of those
with few operations it is the best one there that was made from the ResNet-20. A small vision transformer
has a table of its own.

`--untrained` needs neither data nor a store: weights are random and nothing is trained, so only latencies,
bytes and the cost of the cache are measured, which do not depend on weights. Its ratios end in `_untrained`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.compression_cache import cache_overhead
from benchmarks.compression_table import ALLOWED_DROP, Bench, Entry, accuracy, descends, loader, stored, timed
from benchmarks.compression_transformer import transformer
from benchmarks.interleaved import Here, Peer
from benchmarks.output import Ratio, Result, main
from orchestrator.compression.export import export
from orchestrator.compression.plan import Context, apply_plan
from orchestrator.config.load import load_run
from orchestrator.config.model import ModelSettings
from orchestrator.config.steps import Distill, Qat, Recovery
from orchestrator.data.arrays import from_arrays
from orchestrator.data.load import default_cache, load
from orchestrator.models.build import build, example_rows
from orchestrator.models.served import Served
from orchestrator.runtime import int8
from orchestrator.runtime.bf16 import has_bf16_kernels
from orchestrator.runtime.rebuild import rebuild, tensors_of
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store

RUN_FILE = Path(__file__).with_name("compression.yaml")
PARENT = "resnet20"
PEER_PYTHON = Path(__file__).resolve().parents[1] / ".venv-peers" / "bin" / "python"
PEERS = {
    "AOTInductor bf16": ("aoti_bf16", False),
    "PT2E, torch.compile": ("pt2e", False),
    "OpenVINO bf16": ("openvino_bf16", True),
    "OpenVINO int8 (NNCF)": ("openvino_int8", True),
    "ONNX Runtime int8": ("onnxruntime_int8", True),
}
"""Name -> module, and whether it runs in the peers' environment."""
TORCH_PRUNING = "torch-pruning"
"""The variant that stands for that peer; it leaves an eager model."""


def measure(arguments: argparse.Namespace) -> Result:
    """All figures of the page."""
    torch.set_num_threads(1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench = _untrained(folder) if arguments.untrained else _trained(arguments, folder)
        _prepare(bench)
        rows = timed([*stored(bench, _names(bench), TORCH_PRUNING), *_peers(bench, stack)], PARENT)
        overhead = cache_overhead(bench.store, bench.digest(PARENT), bench.data, bench.config.metric)
        ratios = _speed_ratios(rows)
        small, beside = transformer(bench, stack)
        ratios |= beside
        ratios["cache_overhead"] = Ratio(overhead["ratio"], 1.1, at_most=True)
        if arguments.untrained:
            for row in (*rows, *small):
                for key in ("accuracy", "drop", "held_out_drop", "held_out_error"):
                    row.pop(key, None)
            return [*rows, *small, overhead], {f"{name}_untrained": found for name, found in ratios.items()}
        more, gap = _student(bench)
        return [*rows, *more, *small, overhead], ratios | _accuracy_ratios(bench, rows, gap)


def _names(bench: Bench) -> list[str]:
    """Of the models and variants in the table of the ResNet-20."""
    variants = bench.config.variants
    others = [name for name in variants if name != "student" and not descends(bench.config, name, "vit")]
    return [PARENT, ALONE, *others]


def _trained(arguments: argparse.Namespace, folder: Path) -> Bench:
    if not (arguments.data and arguments.store):
        raise SystemExit("give --data and --store, or --untrained")
    config = load_run(RUN_FILE, [f"data.root={arguments.data}"])
    data = load(config.data, seed=config.seed, cache=default_cache())
    return Bench(config, Store(arguments.store, create=False), data, folder)


def _untrained(folder: Path) -> Bench:
    """The run file's models and variants with random weights, on random rows."""
    config = load_run(RUN_FILE)
    random = np.random.default_rng(0)
    rows = random.integers(0, 256, (4096, 3, 32, 32), dtype=np.uint8)
    data = from_arrays(rows, random.integers(0, 10, len(rows)), seed=0)
    bench = Bench(config, Store(folder / "store"), data, folder)
    for name, entry in config.models.items():
        if entry.model is not None:
            _name(bench, name, _random(bench, entry.model))
    context = Context(
        seed=0,
        calibration=data.part("calibration").inputs,
        train=data.part("train"),
        validation=data.part("validation"),
    )
    for name, variant in config.variants.items():
        plan = tuple(step for step in variant.plan if not isinstance(step, Recovery | Qat))
        if plan and isinstance(plan[0], Distill):
            digest = _random(bench, plan[0].model)
        else:
            digest = apply_plan(bench.store, bench.digest(variant.parent), plan, context)
        _name(bench, name, digest)
    return bench


def _random(bench: Bench, model: ModelSettings) -> str:
    module = build(model, bench.data.signature, seed=0)
    draft = Draft(model=model, signature=bench.data.signature, data=bench.data.digest, seed=0)
    return bench.store.put_artifact(draft, tensors_of(module))


def _name(bench: Bench, name: str, digest: str) -> None:
    bench.store.set_ref(f"{bench.config.name}/{name}", digest)


def _prepare(bench: Bench) -> None:
    """What peers start from (`benchmarks/peers/worker.py`)."""
    parent = bench.digest(PARENT)
    export(bench.store, parent, bench.folder / "model.onnx", "onnx")
    export(bench.store, parent, bench.folder / "model.pt2")
    module = rebuild(bench.store, parent).module
    assert isinstance(module, Served)
    scaling, rows = module.preprocess, example_rows(bench.data.signature, 2)
    torch.export.save(int8.export(scaling, rows), bench.folder / "scaling.pt2")
    torch.export.save(int8.export(module.body, scaling(rows)), bench.folder / "network.pt2")
    np.save(bench.folder / "calibration.npy", bench.data.part("calibration").inputs)
    np.save(bench.folder / "test.npy", bench.data.part("test").inputs)


def _peers(bench: Bench, stack: ExitStack) -> Iterator[Entry]:
    for name, (module, own_environment) in PEERS.items():
        python = PEER_PYTHON if own_environment else Path(sys.executable)
        if not python.exists():
            print(f"left out: {name}: `make peers` was not run", file=sys.stderr)
            continue
        if "bf16" in module and not has_bf16_kernels():
            print(f"left out: {name}: this CPU has no bfloat16 kernels", file=sys.stderr)
            continue
        print(f"starting {name}", file=sys.stderr)
        peer = Peer(module, str(python), bench.folder)
        stack.callback(peer.close)
        yield Entry(
            name=name,
            subject=peer,
            own=False,
            test=accuracy(peer, bench.data.part("test"), bench.folder),
        )


FOUR = ("small-a", "small-b", "small-c", "small-d")
"""Nets of one kind that learned from labels alone."""
ALONE = "alone"
"""The same net trained as long as the student of the four, from labels alone."""


def _student(bench: Bench) -> tuple[list[dict[str, Any]], float]:
    """Share of the gap from a net taught by labels to an ensemble of four that their student keeps."""
    part = bench.data.part("test")
    logits = {
        name: Here(loader(bench.store, bench.digest(name), "eager")).predict(part.inputs, bench.folder)
        for name in (*FOUR, ALONE, "student")
    }
    together = np.mean([torch.from_numpy(logits[name]).softmax(1).numpy() for name in FOUR], axis=0)
    accuracy = {
        name: float((outputs.argmax(1) == part.targets).mean())
        for name, outputs in {"four": together, **logits}.items()
    }
    rows = [{"name": name, "own": True, "accuracy": value} for name, value in accuracy.items()]
    gap = accuracy["four"] - accuracy[ALONE]
    return rows, (accuracy["student"] - accuracy[ALONE]) / gap if gap > 0 else 0.0


def _accuracy_ratios(bench: Bench, rows: list[dict[str, Any]], gap: float) -> dict[str, Ratio]:
    """Of the FLOPs goals the best made from the ResNet-20 itself: other nets are in the table."""
    found = {"student_gap_kept": Ratio(gap, 0.5)}
    pruned = [row for row in rows if row["own"] and descends(bench.config, row["name"], PARENT)]
    for flops, allowed in ((59, 0.003), (41, 0.01)):
        few = [row for row in pruned if row["mflops"] <= flops]
        best = min(few, key=lambda row: float(row["held_out_drop"]))
        name = f"{best['name']} ({best['execution']}), {best['mflops']:.1f} M"
        found[f"flops_{flops}m_drop"] = Ratio(best["drop"], allowed, at_most=True, of=name)
    return found


def _speed_ratios(rows: list[dict[str, Any]]) -> dict[str, Ratio]:
    own = [row for row in rows if row["own"]]
    kept = [row for row in own if row["held_out_drop"] + row["held_out_error"] <= ALLOWED_DROP]
    fits = [row for row in rows if not row["own"] and row["drop"] <= ALLOWED_DROP]
    found: dict[str, Ratio] = {}
    for batch, goal in ((32, 14.0), (1, 2.5)):
        best = max(kept, key=lambda row: float(row[f"b{batch}_speedup"]))
        found[f"speedup_b{batch}"] = _within(best, best[f"b{batch}_speedup"], goal)
        if fits:
            peer = min(float(row[f"b{batch}_ms"]) for row in fits)
            name = "vs_best_peer" if batch == 32 else "vs_best_peer_b1"
            found[name] = _within(best, peer / best[f"b{batch}_ms"], 1.2)
    smallest = max(kept, key=lambda row: float(row["bytes_ratio"]))
    found["bytes_ratio"] = _within(smallest, smallest["bytes_ratio"], 12.0)
    return found


def _within(row: dict[str, Any], value: float, goal: float) -> Ratio:
    """A ratio of a variant chosen by held-out rows: met only if its drop on test rows is small, too."""
    name = f"{row['name']} ({row['execution']})"
    return Ratio(float(value), goal, holds=row["drop"] <= ALLOWED_DROP, of=name)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="FOLDER", help="of the CIFAR-10 Parquet files")
    parser.add_argument("--store", metavar="STORE", help="that the run file was run with")
    parser.add_argument("--untrained", action="store_true", help="random weights: latencies and bytes alone")


if __name__ == "__main__":
    main("compression", __doc__, measure, _arguments)
