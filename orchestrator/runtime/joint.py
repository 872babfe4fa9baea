"""Members that are asked together as one compiled graph: one call, one reading of the rows, one scaling.

Compiled fp32 answers are eager ones to rounding. That is checked on rows kept with the compiled form, when it
is made and at every start.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from orchestrator.config.base import fingerprint
from orchestrator.config.ensemble import Member
from orchestrator.config.signature import Signature
from orchestrator.config.steps import precision_of
from orchestrator.errors import ExecutionError, StoreError
from orchestrator.models.build import example_inputs, example_rows
from orchestrator.models.served import Preprocess, Served
from orchestrator.runtime import execute, package
from orchestrator.runtime.execute import LARGEST_BATCH, Executable
from orchestrator.runtime.forms import apart, cached
from orchestrator.runtime.rebuild import rebuild
from orchestrator.runtime.wide import widened
from orchestrator.store.compiled import MEMBERS
from orchestrator.store.store import Store

SAMPLE = "sample.npz"
FP32_TOLERANCE = 1e-5
"""Largest difference to a member's eager outputs, as a share of its largest one (or of 1, for logits)."""
BF16_TOLERANCE = 0.02
"""The same for bfloat16, which keeps eight bits: compiled code rounds at other places than eager code."""

log = logging.getLogger(__name__)


class Joint:
    """Members that answer the same rows, in this process; not for concurrent calls."""

    def __init__(
        self,
        members: Sequence[Member],
        graph: Executable | None,
        joined: Sequence[Member],
        alone: dict[Member, Executable],
        fallback: str | None,
    ) -> None:
        """Use `load`."""
        self.members = tuple(members)
        self.fallback = fallback
        """Why members that should be compiled run eagerly; None when none does."""
        self._graph, self._joined, self._alone = graph, tuple(joined), alone

    def stacked(
        self, inputs: NDArray[np.generic], begin: Callable[[Collection[Member]], bool]
    ) -> NDArray[np.float32] | None:
        """Outputs [B, M, K] of all members in their order, for rows [B, *input_shape]; None where one failed.

        Args:
            inputs: the rows.
            begin: as for a call.
        """
        if self._graph is not None and not self._alone:
            outputs = _computed(self._graph, inputs, lambda: begin(self._joined))
            return outputs if isinstance(outputs, np.ndarray) else None
        found = self(inputs, begin)
        parts = [found.get(member) for member in self.members]
        arrays = [part for part in parts if isinstance(part, np.ndarray)]
        alike = len(arrays) == len(parts) and len({part.shape for part in arrays}) == 1
        return np.stack(arrays, axis=1) if alike else None

    def __call__(
        self,
        inputs: NDArray[np.generic],
        begin: Callable[[Collection[Member]], bool] = lambda _members: True,
        without: Collection[Member] = (),
    ) -> dict[Member, NDArray[np.float32] | Exception]:
        """Outputs [B, K] of each member for rows [B, *input_shape], or why it has none.

        Args:
            inputs: the rows.
            begin: told which members are computed next, before each piece of `LARGEST_BATCH` rows; False ends
                the call with what is known so far.
            without: members that are left alone, and with one of the graph all of it.
        """
        found: dict[Member, NDArray[np.float32] | Exception] = {}
        if self._graph is not None and not any(member in without for member in self._joined):
            outputs = _computed(self._graph, inputs, lambda: begin(self._joined))
            if outputs is None:
                return found
            for position, member in enumerate(self._joined):
                found[member] = outputs if isinstance(outputs, Exception) else outputs[:, position]
        for member, one in self._alone.items():
            if member in without:
                continue
            output = _computed(one, inputs, partial(begin, (member,)))
            if output is None:
                break
            found[member] = output
        return found


def _computed(
    executable: Executable, inputs: NDArray[np.generic], begin: Callable[[], bool]
) -> NDArray[np.float32] | Exception | None:
    """The outputs, or why there are none; None where a piece may not be begun."""
    parts = []
    for first in range(0, max(len(inputs), 1), LARGEST_BATCH):
        if not begin():
            return None
        part = _tried(executable, inputs[first : first + LARGEST_BATCH])
        if isinstance(part, Exception):
            return part
        parts.append(part)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _tried(executable: Executable, inputs: NDArray[np.generic]) -> NDArray[np.float32] | Exception:
    try:
        return executable(inputs)
    except Exception as error:
        return error


def load(
    store: Store,
    members: Sequence[Member],
    *,
    threads: int = 1,
    batch: int = 32,
    allowed: Collection[str] = (),
    compiled: bool = True,
) -> Joint:
    """Make members ready to run together.

    Compiled into one graph are those of float32 that run `eager`, and those of float32 or bfloat16 that run
    as `aoti`. All others run in their own execution. What cannot be compiled, or then answers otherwise, runs
    eagerly, with a warning.

    Args:
        store: where the artifacts are, and where the compiled form is kept.
        members: distinct ones of one signature.
        threads: torch threads of each call.
        batch: rows that the kernels are tuned for; every batch size works.
        allowed: import paths that an imported model's factory may come from.
        compiled: False leaves every member in its own execution.

    Raises:
        as `execute.load`
    """
    joined = [member for member in members if compiled and _joins(store, member)]
    graph, fallback = None, None
    if joined:
        digests = [member.digest for member in joined]
        try:
            forward = _graph(store, digests, threads, batch, allowed)
            graph = Executable(forward, store.manifest(digests[0]).signature, threads)
        except (ExecutionError, StoreError) as error:  # also a form that can be kept nowhere
            fallback = str(error)
            log.warning("%s run eagerly: %s", ", ".join(member.name for member in joined), error)
    alone = {}
    for member in members:
        if graph is None or member not in joined:
            execution = "eager" if member in joined else member.execution
            alone[member] = execute.load(
                store, member.digest, execution, threads=threads, batch=batch, allowed=allowed
            )
    return Joint(members, graph, joined if graph else (), alone, fallback)


def _joins(store: Store, member: Member) -> bool:
    precision = precision_of(store.manifest(member.digest).plan)
    return (precision, member.execution) in (("fp32", "eager"), ("fp32", "aoti"), ("bf16", "aoti"))


class _SideBySide(nn.Module):
    """The outputs [B, M, K] of M models for the same rows; equal scaling is done once."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self._shared = all(_same_scaling(models[0], model) for model in models)
        wide = widened([getattr(model, "body", model) for model in models]) if self._shared else None
        self.wide: nn.Module | None = wide
        if wide is not None:
            self.models = nn.ModuleList(models[:1])

    def forward(self, x: Tensor) -> Tensor:
        """Raw rows [B, *input_shape]."""
        if not self._shared:
            return torch.stack([model(x) for model in self.models], dim=1)
        first: Any = self.models[0]
        scaled = first.preprocess(x)
        if self.wide is not None:
            out: Tensor = first.rescale(self.wide(scaled))
            return out
        served: list[Any] = list(self.models)
        return torch.stack([model.rescale(model.body(scaled)) for model in served], dim=1)


def _same_scaling(first: nn.Module, other: nn.Module) -> bool:
    if not (isinstance(first, Served) and isinstance(other, Served)):
        return False
    backs = [list(model.rescale.buffers()) for model in (first, other)]
    if len(backs[0]) != len(backs[1]) or not all(map(torch.equal, *backs)):
        return False
    one, two = first.preprocess, other.preprocess
    if not (isinstance(one, Preprocess) and isinstance(two, Preprocess)):
        return type(one) is type(two)
    return torch.equal(one.mean, two.mean) and torch.equal(one.std, two.std)


def _graph(store: Store, digests: Sequence[str], threads: int, batch: int, allowed: Collection[str]) -> Any:
    """The compiled graph [B, ...] -> [B, M, K], from the store when it is there, else compiled now.

    Raises:
        ExecutionError: it cannot be compiled or loaded here, or answers otherwise than eager code.
    """
    facts = package.target_facts(threads, batch)
    plans = [store.manifest(digest).plan for digest in digests]
    tolerances = [BF16_TOLERANCE if precision_of(plan) == "bf16" else FP32_TOLERANCE for plan in plans]
    signature = store.manifest(digests[0]).signature

    def make(folder: Path) -> None:
        from orchestrator.runtime import compiled

        models = [rebuild(store, digest, allowed=allowed).module for digest in digests]
        if any(isinstance(model, fx.GraphModule) for model in models):
            raise ExecutionError("a traced graph is compiled alone", digests[0][:12])
        count = max(batch, 2)
        rows = torch.from_numpy(example_inputs(signature, count))
        with torch.inference_mode():
            expected = torch.stack([model.eval()(rows) for model in models], dim=1)
        together = _SideBySide(models).eval()
        compiled.compile_to(folder / package.PACKAGE, together, example_rows(signature, count), threads)
        np.savez(folder / SAMPLE, rows=rows.numpy(), outputs=expected.float().numpy())
        _check(package.open_package(folder / package.PACKAGE), folder / SAMPLE, tolerances, signature)

    noted = {**facts, MEMBERS: list(digests)}
    folder = cached(store, fingerprint(list(digests)), package.target_key(facts), noted, make)
    forward = package.open_package(folder / package.PACKAGE)
    _check(forward, folder / SAMPLE, tolerances, signature)
    return forward


def _check(forward: Any, sample: Path, tolerances: Sequence[float], signature: Signature) -> None:
    """Refuse a graph whose answers to the kept rows are not those that were kept with them.

    Args:
        forward: rows to outputs [B, M, ...].
        sample: the kept rows and outputs.
        tolerances: of each member.
        signature: of the members.
    """
    # Logits count as 1 at least; a regression's values may be small in their unit.
    least = 1e-12 if signature.task == "regression" else 1.0
    try:
        with np.load(sample, allow_pickle=False) as kept:
            rows, expected = kept["rows"], kept["outputs"]
        with torch.inference_mode():
            found = forward(torch.from_numpy(rows)).float().numpy()
        if found.shape != expected.shape:
            raise ValueError(f"outputs {found.shape}, kept {expected.shape}")
    except (OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise ExecutionError(
            "the compiled graph cannot be checked", f"{type(error).__name__}: {error}", "they run eagerly"
        ) from error
    for member, tolerance in enumerate(tolerances):
        off, size = apart(
            torch.from_numpy(found[:, member]), torch.from_numpy(expected[:, member]), signature
        )
        difference = float(off.max()) / max(least, float(size.abs().max()))
        if not difference <= tolerance:  # NaN is one, too
            raise ExecutionError(
                "the compiled graph answers otherwise than its models",
                f"{difference:.2g}",
                "they run eagerly",
            )
