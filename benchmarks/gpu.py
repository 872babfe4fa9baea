"""Variants on one GPU: eager and compiled, float32, bfloat16, fp8 and int4, interleaved in one run.

`benchmarks/compression.yaml` and `benchmarks/gpu.yaml` say how models are made. Rows are on the card before
a call, and every call is waited for. Float32 is torch's default, with TF32 in convolutions.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.output import Ratio, Result, main
from orchestrator.config.load import load_run
from orchestrator.data.dataset import Part
from orchestrator.data.load import default_cache, load
from orchestrator.errors import ExecutionError, NotFoundError
from orchestrator.measure.latency import ratio
from orchestrator.runtime.compiled import compile_to
from orchestrator.runtime.gpu import for_gpu
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store

RUN_FILE = Path(__file__).with_name("gpu.yaml")
Form = Literal["eager", "compiled"]
BATCHES = (1, 32, 1024)
ROUNDS, BLOCK_MS, WARM_UP_CALLS = 9, 30.0, 30
TRACED_ROWS = 64
AT_ONCE = 8
NETWORKS = ("resnet20", "bf16", "at-59m-bf16", "at-41m-bf16", "fast-bf16")
TRANSFORMERS = ("vit", "vit-bf16", "vit-fp8", "vit-int8", "vit-int4")
SUBJECTS: tuple[tuple[str, Form], ...] = tuple(
    (f"{run}/{name}", form)
    for run, names in (("compression", NETWORKS), ("gpu", TRANSFORMERS))
    for name in names
    for form in ("eager", "compiled")
)
BASELINES = {"compression": "compression/resnet20", "gpu": "gpu/vit"}


@dataclass(frozen=True)
class Subject:
    """One artifact in one form, on the card."""

    ref: str
    form: Form
    call: Callable[[Tensor], Tensor]
    bytes: int
    left: tuple[str, ...]
    """Layers without a kernel of their numbers."""


def measure(arguments: argparse.Namespace) -> Result:
    """The table."""
    if arguments.compile:
        _compile(Store(arguments.store, create=False), *arguments.compile)
        raise SystemExit(0)
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here")
    store, test = Store(arguments.store, create=False), _test_rows(arguments.data)
    with tempfile.TemporaryDirectory() as folder:
        packages = _packages(arguments.store, Path(folder))
        subjects = [found for ref, form in SUBJECTS if (found := _load(store, ref, form, packages))]
        rows = [_row(subject) | _accuracy(subject, test) for subject in subjects]
        for batch in BATCHES:
            for row, timed in zip(rows, _timed(subjects, batch), strict=True):
                row.update(timed)
    return [{"device": torch.cuda.get_device_name(), "torch": torch.__version__}, *rows], _ratios(rows)


def _test_rows(folder: str | None) -> Part | None:
    if folder is None:
        return None
    config = load_run(RUN_FILE, [f"data.root={folder}"])
    return load(config.data, seed=config.seed, cache=default_cache()).part("test")


def _packages(store: str, folder: Path) -> dict[str, Path]:
    """Compiled forms by ref; each is made by a process of its own, several at once."""
    refs = [ref for ref, form in SUBJECTS if form == "compiled"]
    paths = {ref: folder / f"{ref.replace('/', '-')}.pt2" for ref in refs}

    def compiled(ref: str) -> bool:
        command = [sys.executable, "-m", "benchmarks.gpu", "--store", store]
        done = subprocess.run([*command, "--compile", ref, str(paths[ref])], capture_output=True, text=True)
        if done.returncode:
            print(f"not compiled: {ref}: {done.stderr.strip()[-900:]}", file=sys.stderr)
        return done.returncode == 0

    with ThreadPoolExecutor(AT_ONCE) as pool:
        made = list(pool.map(compiled, refs))
    return {ref: paths[ref] for ref, fine in zip(refs, made, strict=True) if fine}


def _module(store: Store, ref: str) -> tuple[nn.Module, tuple[str, ...]]:
    module, left = for_gpu(rebuild(store, store.ref(ref)).module)
    return module.to(memory_format=torch.channels_last), left  # type: ignore[call-overload]


def _compile(store: Store, ref: str, path: str) -> None:
    module, _ = _module(store, ref)
    compile_to(Path(path), module, _rows(TRACED_ROWS), threads=1)


def _load(store: Store, ref: str, form: Form, packages: dict[str, Path]) -> Subject | None:
    try:
        digest = store.ref(ref)
    except NotFoundError as error:
        print(f"left out: {error}", file=sys.stderr)
        return None
    module, left = _module(store, ref)
    call: Callable[[Tensor], Tensor] = module
    if form == "compiled":
        if ref not in packages:
            return None
        call = torch._inductor.aoti_load_package(str(packages[ref]))
    subject = Subject(ref, form, call, store.artifact_bytes(digest), left)
    try:
        with torch.inference_mode():
            for batch in BATCHES:
                call(_rows(batch))
    except (RuntimeError, ExecutionError) as error:
        print(f"left out: {ref} ({form}): {str(error).strip().splitlines()[0]}", file=sys.stderr)
        return None
    return subject


def _rows(batch: int) -> Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (batch, 3, 32, 32), dtype=np.uint8)).cuda()


def _row(subject: Subject) -> dict[str, Any]:
    known: dict[str, Any] = {"name": subject.ref, "form": subject.form, "bytes": subject.bytes}
    return known | ({"without_kernels": len(subject.left)} if subject.left else {})


def _accuracy(subject: Subject, part: Part | None) -> dict[str, float]:
    if part is None:
        return {}
    right = 0
    with torch.inference_mode():
        for start in range(0, len(part.ids), BATCHES[-1]):
            piece = slice(start, start + BATCHES[-1])
            outputs = subject.call(torch.from_numpy(np.ascontiguousarray(part.inputs[piece])).cuda())
            right += int((outputs.argmax(1).cpu().numpy() == part.targets[piece]).sum())
    return {"accuracy": right / len(part.ids)}


def _timed(subjects: list[Subject], batch: int) -> list[dict[str, Any]]:
    """Each subject's median latency and how many times as fast it is as its run's eager float32 model."""
    rows = _rows(batch)
    calls = [
        max(1, round(BLOCK_MS / np.median([_time(one.call, rows) for _ in range(30)]))) for one in subjects
    ]
    blocks: list[list[float]] = [[] for _ in subjects]
    for _ in range(ROUNDS):
        for position, subject in enumerate(subjects):
            times = [_time(subject.call, rows) for _ in range(calls[position])]
            blocks[position].append(float(np.median(times)))
    found = []
    for position, subject in enumerate(subjects):
        base = BASELINES[subject.ref.split("/")[0]]
        start = next(at for at, one in enumerate(subjects) if (one.ref, one.form) == (base, "eager"))
        speedup, interval = ratio(blocks[start], blocks[position])
        found.append(
            {
                f"b{batch}_ms": float(np.median(blocks[position])),
                f"b{batch}_speedup": speedup,
                f"b{batch}_ci": list(interval),
            }
        )
    return found


def _time(call: Callable[[Tensor], Tensor], rows: Tensor) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    with torch.inference_mode():
        call(rows)
    torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1e3


def _ratios(rows: list[dict[str, Any]]) -> dict[str, Ratio]:
    """The fastest form of each run at each batch size, in times of its eager float32 model."""
    found = {}
    for run in BASELINES:
        own = [row for row in rows if row["name"].startswith(f"{run}/")]
        for batch in BATCHES:
            best = max(own, key=lambda row: float(row[f"b{batch}_speedup"]))
            name = f"{best['name']} ({best['form']})"
            found[f"{run}_speedup_b{batch}"] = Ratio(float(best[f"b{batch}_speedup"]), 1.0, of=name)
    return found


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", required=True, metavar="STORE", help="that the models are in")
    parser.add_argument("--data", metavar="FOLDER", help="of the data files: accuracy on test rows, too")
    parser.add_argument("--compile", nargs=2, metavar=("REF", "FILE"), help="only compile one of them")


if __name__ == "__main__":
    main("gpu", __doc__, measure, _arguments)
