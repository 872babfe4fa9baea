"""Run an artifact: eager, lowered to int8 kernels, compiled ahead of time, or by OpenVINO.

Each execution is imported by the artifacts that run in it: torch's compiler alone takes two seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from orchestrator.config.measure import Execution
from orchestrator.config.signature import Signature
from orchestrator.config.steps import EXECUTIONS, precision_of
from orchestrator.errors import DataError, ExecutionError
from orchestrator.models.build import example_rows
from orchestrator.runtime import package
from orchestrator.runtime.forms import cached
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store

LARGEST_BATCH = 1024
"""More rows are run in pieces, to bound the memory of activations."""


class Executable:
    """A loaded artifact: raw rows in, outputs out. Not for concurrent calls."""

    def __init__(self, forward: Callable[[Tensor], Tensor], signature: Signature, threads: int) -> None:
        """Wrap `forward`; use `load`."""
        self.signature = signature
        self.threads = threads
        self._forward = forward
        self._dtype = np.dtype(signature.input_dtype)

    def __call__(self, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        """Outputs float32 [B, K] of raw rows [B, *input_shape] of the signature's type, B >= 1.

        Sets this process's torch threads to the executable's.

        Raises:
            DataError: the rows are not of the signature's shape and type.
        """
        signature = self.signature
        if inputs.shape[1:] != signature.input_shape or inputs.dtype != self._dtype:
            raise DataError(
                "the rows do not fit the model",
                f"{inputs.dtype} {list(inputs.shape)}",
                f"give {signature.input_dtype} [B, {', '.join(map(str, signature.input_shape))}]",
            )
        if len(inputs) == 0:
            return np.zeros((0, signature.outputs), np.float32)
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            if len(inputs) <= LARGEST_BATCH:
                return self._run(inputs)
            pieces = range(0, len(inputs), LARGEST_BATCH)
            return np.concatenate([self._run(inputs[i : i + LARGEST_BATCH]) for i in pieces])

    def _run(self, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        # A read-only memory map must be copied: torch has no read-only tensors.
        rows = np.require(inputs, requirements=("C", "W"))
        # A model of one's own may answer in another floating point type.
        outputs: NDArray[np.float32] = self._forward(torch.from_numpy(rows)).float().numpy()
        return outputs


def executions(manifest: Draft) -> tuple[Execution, ...]:
    """How an artifact can run, the simplest first."""
    return EXECUTIONS[precision_of(manifest.plan)]


def lacking() -> tuple[Execution, ...]:
    """Executions that this machine lacks a compiler or a package for."""
    from orchestrator.runtime import openvino

    found: list[Execution] = [] if package.has_compiler() else ["aoti"]
    if openvino.missing() is not None:
        found.append("openvino")
    return tuple(found)


def load(
    store: Store,
    digest: str,
    execution: Execution,
    *,
    threads: int = 1,
    batch: int = 32,
    allowed: Collection[str] = (),
) -> Executable:
    """Make an artifact ready to run.

    Args:
        store: where the artifact is, and where its compiled form is kept.
        digest: of the artifact.
        execution: one of `executions(manifest)`.
        threads: torch threads of each call.
        batch: rows that the kernels are tuned for; every batch size works.
        allowed: import paths that an imported model's factory may come from.

    Raises:
        UnavailableError: this machine lacks what the execution needs.
        ExecutionError: the artifact does not run in this execution.
        ModelError: the factory is not allowed.
        CorruptArtifactError: a file is damaged.
    """
    manifest = store.manifest(digest)
    if execution not in executions(manifest):
        raise ExecutionError(
            f"the artifact does not run as {execution}",
            digest[:12],
            f"it runs as: {', '.join(executions(manifest))}",
        )
    torch.set_num_threads(threads)
    if execution == "aoti":
        forward = _compiled(store, digest, threads, batch, allowed)
        return Executable(forward, manifest.signature, threads)
    if execution == "openvino":
        from orchestrator.runtime import openvino

        forward = openvino.load(store, digest, threads=threads, allowed=allowed)
        return Executable(forward, manifest.signature, threads)
    module = rebuild(store, digest, allowed=allowed).module
    return of_module(module, manifest.signature, execution, threads=threads, batch=batch)


def _compiled(
    store: Store, digest: str, threads: int, batch: int, allowed: Collection[str]
) -> Callable[[Tensor], Tensor]:
    """The compiled form for this machine, from the store when it is there, else compiled now."""
    facts = package.target_facts(threads, batch)

    def make(folder: Path) -> None:
        from orchestrator.runtime import compiled

        compiled.write(folder, store, digest, threads, batch, allowed)

    folder = cached(store, digest, package.target_key(facts), facts, make)
    return package.open_package(folder / package.PACKAGE)


class _RowByRow(nn.Module):
    """One row after the other: a range is taken from a whole call, so an outlying row would leave the others,
    which may be other clients', no digits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, rows: Tensor) -> Tensor:
        """[B, ...] -> [B, K]."""
        return torch.cat([self.inner(row) for row in rows.split(1)])


def of_module(
    module: nn.Module, signature: Signature, execution: Execution, *, threads: int = 1, batch: int = 32
) -> Executable:
    """A module in memory as an eager or lowered executable.

    Raises:
        ExecutionError: `execution` is neither, or does not fit the module.
    """
    if execution in ("aoti", "openvino"):
        raise ExecutionError("only a stored artifact can be compiled", execution)
    forward: nn.Module = module
    if isinstance(module, torch.fx.GraphModule):
        from orchestrator.runtime import int8

        alone = int8.ranges_at_run_time(module)
        # Weights are packed for calls of the example's rows; one row would fix the graph's batch.
        forward = int8.lower(module, example_rows(signature, 2 if alone else max(batch, 2)))
        forward = _RowByRow(forward) if alone else forward
    elif execution == "lowered":
        raise ExecutionError("only an int8 graph can be lowered", type(module).__name__)
    return Executable(forward, signature, threads)


def predict(executable: Executable, inputs: NDArray[np.generic], batch: int = 256) -> NDArray[np.float32]:
    """Outputs float32 [N, K] of raw rows [N, ...], `batch` rows at a time."""
    if len(inputs) == 0:
        return executable(inputs)
    return np.concatenate([executable(inputs[i : i + batch]) for i in range(0, len(inputs), batch)])
