"""Small artifacts, and real processes to fight over them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import torch

from orchestrator.config.ensemble import Member, Parallel, Spec
from orchestrator.config.model import Mlp
from orchestrator.config.signature import Signature
from orchestrator.config.steps import Bf16
from orchestrator.store.artifacts import Draft

SIGNATURE = Signature(
    task="classification",
    input_shape=(4,),
    input_dtype="float32",
    outputs=3,
    mean=(0.0,) * 4,
    std=(1.0,) * 4,
)
D1, D2, D3 = "1" * 64, "2" * 64, "3" * 64


def draft(seed: int = 0) -> Draft:
    return Draft(
        model=Mlp(),
        signature=SIGNATURE,
        plan=(Bf16(),),
        decisions=({"cast": ["body.0"], "scale": 0.1},),
        parents=(D1,),
        data=D2,
        seed=seed,
        what={"threads": 1},
    )


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "body.0.weight": torch.randn(3, 4, generator=generator),
        "body.0.bias": torch.randn(3, generator=generator),
    }


def spec() -> Spec:
    members = (Member(name="a", digest=D1), Member(name="b", digest=D2))
    return Spec(name="both", tree=Parallel(members=members), signature=SIGNATURE)


def files_below(root: Path) -> list[str]:
    """All files of a store, but those that a killed writer left."""
    paths = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if path.parts[0] != ".tmp")


def in_processes(count: int, work: Callable[[int], object], timeout_s: float = 60.0) -> list[int]:
    """Run `work(number)` in `count` processes that begin together; their exit codes."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(count)

    def begin(number: int) -> None:
        barrier.wait()
        work(number)

    processes = [context.Process(target=begin, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
    return [process.exitcode if process.exitcode is not None else -1 for process in processes]


def forked(work: Callable[[], object]) -> int:
    """Start `work` in a forked process; its process id. It exits with 0, or with 1 after an exception."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return pid
