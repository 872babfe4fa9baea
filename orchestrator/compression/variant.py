"""A compressed model in memory: run it, audit it, save it, export it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import fx, nn

from orchestrator.compression.audit import facts_of, told
from orchestrator.compression.export import Format, write
from orchestrator.compression.gate import Gate, gate
from orchestrator.compression.step import plain_metric
from orchestrator.config.base import canonical
from orchestrator.config.measure import Execution, LatencySettings, Metric
from orchestrator.config.model import ModelSettings
from orchestrator.config.search import Promise
from orchestrator.config.signature import Signature
from orchestrator.config.steps import Plan
from orchestrator.errors import CompressionError, ConfigError, DataError
from orchestrator.measure.latency import Latency, compare
from orchestrator.measure.promise import Verdict, non_inferior
from orchestrator.models.build import build, example_inputs
from orchestrator.runtime.execute import Executable, load, of_module, predict
from orchestrator.runtime.rebuild import tensors_of
from orchestrator.store.artifacts import Draft, pack_tensors
from orchestrator.store.store import Store

BATCHES = (1, 32)
"""Batch sizes of an audit's latencies."""


@dataclass(frozen=True)
class Audit:
    """What a plan really did to a model."""

    facts: dict[str, Any]
    """`bytes`, `macs` and `params` of a row, `zeros` (share of the weights), `int8` and `fp8` (see
    `audit`), `peak_bytes` (activations of the largest batch), `masked_only`, `decided` (what each
    step reached)."""
    baseline: dict[str, Any]
    """The same of the model before."""
    latencies: dict[int, Latency]
    """By batch size, one thread unless asked otherwise, interleaved with the model before in eager fp32."""
    gate: Gate

    def __str__(self) -> str:
        own, before = self.facts, self.baseline
        lines = [f"{key:>12}  {before[key]:>14,} -> {own[key]:>14,}" for key in ("bytes", "macs", "params")]
        lines.append(f"{'peak bytes':>12}  {before['peak_bytes']:>14,} -> {own['peak_bytes']:>14,}")
        lines.append(f"{'zeros':>12}  {before['zeros']:>14.1%} -> {own['zeros']:>14.1%}")
        for batch, found in self.latencies.items():
            low, high = found.ratio_ci
            lines.append(
                f"{f'batch {batch}':>12}  {found.median_ms:.3f} ms ({found.execution}), "
                f"{found.ratio:.2f} times as fast ({low:.2f} to {high:.2f})"
            )
        lines += [f"{step['kind']:>16}  {told(step)}" for step in own["decided"] if len(step) > 1]
        for kind in ("int8", "fp8"):
            if own[kind] is not None:
                lines.append(f"{kind:>12}  {own[kind]['share']:.0%} of the products")
                lines += [f"{'float':>12}  {row['layer']}: {row['why']}" for row in own[kind]["fell_back"]]
        verdict = "passes" if self.gate.passes else "REFUSED"
        return "\n".join([*lines, f"{'gate':>12}  {verdict}: {self.gate.reason}"])


@dataclass(frozen=True)
class Variant:
    """A compressed model. Call it with raw rows."""

    module: nn.Module
    """Eval mode. After int8 it is the quantize/dequantize graph; calling the variant runs it lowered."""
    signature: Signature
    plan: Plan
    decisions: tuple[dict[str, Any], ...]
    """One a step: what it decided."""
    before: nn.Module
    """The model that it came from."""
    float_form: nn.Module
    """The model before its numbers' type was changed: what its operations are counted on."""
    model: ModelSettings | None = None
    """Settings that build its untrained form."""
    origin: ModelSettings | None = None
    """The same of the model that it came from; they differ after a distillation."""
    data: str = ""
    seed: int = 0
    what: Mapping[str, Any] = field(default_factory=dict)
    digest: str | None = None
    """In the store that it came from or was saved to."""
    store: Store | None = None
    """That it came from."""
    allowed: Collection[str] = ()
    """Import paths that its model's factory may come from."""

    def __call__(self, rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Logits, or values in raw units, float32 [N, K] of raw rows [N, *input_shape].

        Raises:
            DataError: the rows are not of the signature's shape, or its type cannot hold their values.
        """
        return self._executable(self._typed(rows))

    @property
    def execution(self) -> Execution:
        """How it runs: lowered after int8, else eager."""
        return "lowered" if isinstance(self.module, fx.GraphModule) else "eager"

    def executable(self, *, threads: int = 1, batch: int = 32) -> Executable:
        """Ready to run in its execution.

        Args:
            threads: torch threads of each call.
            batch: rows that kernels are chosen for; every number of rows works.
        """
        return of_module(self.module, self.signature, self.execution, threads=threads, batch=batch)

    def audit(
        self,
        batches: Sequence[int] = BATCHES,
        latency: LatencySettings | None = None,
        *,
        execution: Execution | None = None,
    ) -> Audit:
        """Measure the variant against the model that it came from. Keep the machine quiet meanwhile.

        Args:
            batches: to measure latencies at.
            latency: threads, and number and length of the blocks; its batch is not used.
            execution: that latencies are measured in; eager or lowered (`Variant.execution`) when not given.
                Other forms are kept in the store that the variant came from. One of a module is saved to a
                temporary store for them, and so needs its model's settings.

        Raises:
            CompressionError: as `save`.
            ExecutionError: the variant does not run so.
            UnavailableError: this machine lacks what the execution needs.
        """
        settings, asked = latency or LatencySettings(), execution or self.execution
        with self._runs(asked) as ready:
            latencies = {batch: self._latency(batch, settings, asked, ready) for batch in batches}
        largest = max(batches, default=1)
        before = facts_of(self.before, self.before, self.signature, batch=largest)
        own = facts_of(
            self.module,
            self.float_form,
            self.signature,
            self.decisions,
            macs_before=before["macs"],
            batch=largest,
        )
        before["bytes"], own["bytes"] = _packed(self.before, ()), self._bytes()
        return Audit(own, before, latencies, gate(own, before, latencies))

    def promise(
        self,
        rows: npt.ArrayLike,
        targets: npt.ArrayLike,
        promise: Promise | None = None,
        *,
        metric: Metric | None = None,
        seed: int = 0,
        looks: int = 1,
    ) -> Verdict:
        """Whether the variant, in its own kernels, is not worse than the model before: shown, not assumed.

        One look keeps the stated confidence. Who asks for several variants on the same rows and takes one
        that holds says how many with `looks`; `promise.looks` is the search's, whose order is fixed.

        Args:
            rows: raw rows [N, *input_shape] that nothing was trained, calibrated or chosen on.
            targets: labels [N], or values [N, T].
            promise: allowed drop, confidence and more; a drop of 0.01 at 95 % when not given.
            metric: what was promised; the task's plain one when not given.
            seed: of the bootstrap, for metrics that need one.
            looks: how many variants these rows are asked about in all, at least 1: each gets its share of the
                risk (Bonferroni), so that all verdicts together keep the confidence.

        Returns:
            "holds", "fails" or "cannot be told", with the drop, its bound and, for the last, about how many
            rows would do.

        Raises:
            ConfigError: `looks` is below 1.
            DataError: as for a call.
        """
        if looks < 1:
            raise ConfigError("a promise is looked at once or more", looks, "give the number of variants")
        inputs = self._typed(rows)
        before = predict(of_module(self.before, self.signature, "eager"), inputs)
        own = predict(self._executable, inputs)
        chosen = metric or plain_metric(self.signature)
        asked = promise or Promise()
        asked = asked.model_copy(update={"confidence": 1 - (1 - asked.confidence) / looks})
        return non_inferior(chosen, own, before, targets, asked, seed=seed, allowed=self.allowed)

    def save(self, store: Store | str | Path, name: str | None = None) -> str:
        """Keep the variant, and the model that it came from, in a store, from where it can be served.

        Args:
            store: or its root.
            name: ref to give it, like `digits/small`.

        Returns:
            Its digest.

        Raises:
            CompressionError: `compress` was not told the model's settings, or they build another model.
        """
        opened = store if isinstance(store, Store) else Store(str(store))
        digest = self.digest if self.digest and opened.has(self.digest) else self._put(opened)
        if name is not None:
            opened.set_ref(name, digest)
        return digest

    def _put(self, store: Store) -> str:
        if self.model is None or self.origin is None:
            raise CompressionError(
                "a variant is saved with the settings that build its model",
                "model is missing",
                "call compress(..., model=Mlp(...)) or the like, ImportedModel(factory=...) for own code",
            )
        try:
            built = build(self.origin, self.signature, allowed=self.allowed, seed=0)
            built.load_state_dict(self.before.state_dict())
            self._check_answers(built)
        except RuntimeError as error:
            raise CompressionError(
                "these settings build another model than the one that was compressed",
                " ".join(str(error).split())[:200],
                "give compress(..., model=...) the settings that the module was built from",
            ) from error
        common = {"signature": self.signature, "data": self.data, "seed": self.seed}
        imported = Draft(model=self.origin, **common, what={"imported": True})
        parent = store.put_artifact(imported, tensors_of(self.before))
        if not self.plan:
            return parent
        made = {"plan": self.plan, "decisions": self.decisions, "parents": (parent,), "what": dict(self.what)}
        return store.put_artifact(Draft(model=self.model, **common, **made), tensors_of(self.module))

    def _check_answers(self, built: nn.Module) -> None:
        """Layers of equal shapes may be joined in another way."""
        rows = example_inputs(self.signature, 8)
        own, wanted = (of_module(one.eval(), self.signature, "eager")(rows) for one in (built, self.before))
        if not np.allclose(own, wanted, rtol=1e-3, atol=1e-4):
            raise RuntimeError("with equal weights it answers otherwise")

    def export(self, path: str | Path, format: Format = "pt2") -> Path:
        """Write one file for other tools, for any batch size; see `compression.export`."""
        return write(self.module, self.signature, path, format)

    def _typed(self, rows: npt.ArrayLike) -> npt.NDArray[Any]:
        """The rows in the signature's type, if it keeps their values: pixels of 0 to 1 would all be black."""
        given, wanted = np.asarray(rows), self.signature.input_dtype
        with np.errstate(invalid="ignore"):
            typed: npt.NDArray[Any] = given.astype(wanted, copy=False)
        if wanted != "float32" and not np.array_equal(typed, given):
            raise DataError(
                f"the model takes raw rows of {wanted}, which cannot hold these values",
                f"{given.dtype} from {given.min()} to {given.max()}",
                "give the rows as the training data has them, not scaled",
            )
        return typed

    @cached_property
    def _executable(self) -> Executable:
        return self.executable()

    @contextmanager
    def _runs(self, execution: Execution) -> Iterator[Callable[..., Executable]]:
        """What makes it ready to run so, for `threads` and `batch`."""
        if execution == self.execution:
            yield self.executable
            return
        with tempfile.TemporaryDirectory() as folder:
            store = self.store if self.store is not None else Store(folder)
            yield partial(load, store, self.save(store), execution, allowed=self.allowed)

    def _latency(
        self, batch: int, settings: LatencySettings, execution: Execution, ready: Callable[..., Executable]
    ) -> Latency:
        asked = settings.model_copy(update={"batch": batch})
        rows = example_inputs(self.signature, batch)
        own = ready(threads=asked.threads, batch=batch)
        before = of_module(self.before, self.signature, "eager", threads=asked.threads)
        calls = {"before": lambda: before(rows), "own": lambda: own(rows)}
        return compare(calls, asked, baseline="before", executions={"own": execution})["own"]

    def _bytes(self) -> int:
        return _packed(self.module, self.decisions)


def _packed(module: nn.Module, decisions: Sequence[Mapping[str, Any]]) -> int:
    """Bytes of weights and decisions as an artifact keeps them (its manifest adds about 1 KB)."""
    return len(pack_tensors(tensors_of(module))) + len(canonical(list(decisions)))
