"""Compress a model from Python: no Ray, no run file.

variant = compress(model, [{"kind": "prune_channels", "amount": 0.5}, {"kind": "int8_static"}], data)
print(variant.audit())
variant.export("small.pt2")
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from safetensors.torch import save as pack_tensors
from torch import fx, nn

from orchestrator.compression.audit import facts_of
from orchestrator.compression.export import Format, write
from orchestrator.compression.gate import Gate, gate, is_masked
from orchestrator.compression.plan import Context, State, apply_plan, check_plan, run_step, what_decides
from orchestrator.compression.step import Other
from orchestrator.config.base import canonical
from orchestrator.config.data import DataSettings
from orchestrator.config.measure import Execution, LatencySettings, Metric
from orchestrator.config.model import ModelSettings
from orchestrator.config.signature import Signature
from orchestrator.config.steps import PLAN, DynamicInt8, Plan, StaticInt8, Step
from orchestrator.data.arrays import from_arrays
from orchestrator.data.dataset import Dataset
from orchestrator.data.load import default_cache, load
from orchestrator.errors import CompressionError, ConfigError
from orchestrator.measure.artifacts import example_inputs
from orchestrator.measure.latency import Latency, compare
from orchestrator.measure.memory import peak_bytes
from orchestrator.models.build import build
from orchestrator.models.served import Served
from orchestrator.runtime.execute import Executable, of_module
from orchestrator.runtime.rebuild import rebuild, tensors_of
from orchestrator.store.artifacts import Draft
from orchestrator.store.names import is_digest
from orchestrator.store.store import Store
from orchestrator.training.state import EpochReport

Data = Dataset | DataSettings | tuple[npt.ArrayLike, npt.ArrayLike]
"""A loaded data set, settings as in a run file, or (inputs [N, ...], targets [N] or [N, T])."""

BATCHES = (1, 32)
"""Batch sizes of an audit's latencies."""


@dataclass(frozen=True)
class Audit:
    """What a plan really did to a model."""

    facts: dict[str, Any]
    """`bytes`, `macs` and `params` of a row, `zeros` (share of the weights), `int8` (see `audit`),
    `peak_bytes` (activations of the largest batch), `masked_only`."""
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
        if own["int8"] is not None:
            lines.append(f"{'int8':>12}  {own['int8']['share']:.0%} of the products")
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

    def __call__(self, rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Logits, or values in raw units, float32 [N, K] of raw rows [N, *input_shape]."""
        return self._executable(np.asarray(rows).astype(self.signature.input_dtype, copy=False))

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

    def audit(self, batches: Sequence[int] = BATCHES, latency: LatencySettings | None = None) -> Audit:
        """Measure the variant against the model that it came from. Keep the machine quiet meanwhile.

        Args:
            batches: to measure latencies at.
            latency: threads, and number and length of the blocks; its batch is not used.
        """
        settings = latency or LatencySettings()
        latencies = {batch: self._latency(batch, settings) for batch in batches}
        largest = max(batches, default=1)
        own = facts_of(self.module, self.float_form, self.signature)
        before = facts_of(self.before, self.before, self.signature)
        own |= {"bytes": self._bytes(), "peak_bytes": self._peak(self.executable(batch=largest), largest)}
        eager = of_module(self.before, self.signature, "eager")
        before |= {"bytes": _packed(self.before, ()), "peak_bytes": self._peak(eager, largest)}
        own["masked_only"], before["masked_only"] = is_masked(own, before), False
        return Audit(own, before, latencies, gate(own, before, latencies))

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
                "call compress(..., model=ModelSettings)",
            )
        try:
            build(self.origin, self.signature, seed=0).load_state_dict(self.before.state_dict())
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

    def export(self, path: str | Path, format: Format = "pt2") -> Path:
        """Write one file for other tools, for any batch size; see `compression.export`."""
        return write(self.module, self.signature, path, format)

    @cached_property
    def _executable(self) -> Executable:
        return self.executable()

    def _latency(self, batch: int, settings: LatencySettings) -> Latency:
        asked = settings.model_copy(update={"batch": batch})
        rows = example_inputs(self.signature, batch)
        own = self.executable(threads=asked.threads, batch=batch)
        before = of_module(self.before, self.signature, "eager", threads=asked.threads)
        calls = {"before": lambda: before(rows), "own": lambda: own(rows)}
        return compare(calls, asked, baseline="before", executions={"own": self.execution})["own"]

    def _peak(self, executable: Executable, batch: int) -> int:
        rows = example_inputs(self.signature, batch)
        return peak_bytes(lambda: executable(rows))

    def _bytes(self) -> int:
        return _packed(self.module, self.decisions)


def compress(
    source: nn.Module | str,
    plan: Plan | Sequence[Step | Mapping[str, Any]],
    data: Data | None = None,
    *,
    model: ModelSettings | None = None,
    store: Store | str | Path | None = None,
    metric: Metric | None = None,
    seed: int = 0,
    threads: int = 1,
    allowed: Collection[str] = (),
    on_epoch: Callable[[EpochReport], None] | None = None,
    others: Mapping[str, nn.Module] | None = None,
) -> Variant:
    """Apply a plan to a module of yours, or to an artifact of a store.

    Args:
        source: a module, or a ref or digest in `store`. With a data set the module takes its rows scaled as
            the signature says, like every model of a run file; with arrays it takes them as they are. It is
            not changed.
        plan: steps, or mappings as in a run file, in rising order.
        data: what recovery trains on and calibration looks at; steps that need it say so.
        model: settings that build the module; only needed to save the variant.
        store: where `source` is.
        metric: what a recovery reports; the task's plain one when not given.
        seed: of everything random.
        threads: torch threads; they change the weights of a recovery.
        allowed: import paths that factories, losses and metrics may come from.
        on_epoch: called after each epoch of a recovery.
        others: modules by the names that steps give in their `others`; of an artifact they are refs or
            digests in the store. They take rows as `source` does.

    Raises:
        CompressionError: the plan or a step does not fit, or would do nothing.
        ConfigError: the plan is not valid.
        DataError: the data is missing or unreadable.
        NotFoundError: `source` is not in the store.
    """
    steps = _read(plan)
    dataset = _dataset(data, seed, allowed)
    context = _context(dataset, seed=seed, threads=threads, metric=metric, allowed=allowed, on_epoch=on_epoch)
    if isinstance(source, str):
        if store is None:
            raise ConfigError("a ref or digest needs the store that it is in", source, "pass store=...")
        opened = store if isinstance(store, Store) else Store(str(store), create=False)
        return _of_artifact(opened, source, steps, context)
    if dataset is None:
        raise ConfigError(
            "a module needs data, which says what rows it takes", fix="pass data=(inputs, targets)"
        )
    signature = dataset.signature
    known = {name: _served(module, signature) for name, module in (others or {}).items()}
    return _of_module(source, signature, steps, replace(context, other=_finder(known)), model)


def _context(dataset: Dataset | None, **more: Any) -> Context:
    """What steps may use of the data, and `more` fields of a `Context`."""
    if dataset is None:
        return Context(**more)
    parts = dataset.parts
    return Context(
        data=dataset.digest,
        calibration=parts["calibration"].inputs if "calibration" in parts else None,
        train=parts.get("train"),
        validation=parts.get("validation"),
        **more,
    )


def _finder(known: Mapping[str, nn.Module]) -> Callable[[str], Other]:
    def find(name: str) -> Other:
        if name not in known:
            raise CompressionError(
                "a step names a model that was not given",
                name,
                f"pass others={{...}}; given: {', '.join(known) or 'none'}",
            )
        return Other(lambda: known[name], None)

    return find


def _served(module: nn.Module, signature: Signature) -> nn.Module:
    """The module with the signature's scaling, in eval mode; a copy."""
    return (module if isinstance(module, Served) else Served(signature, copy.deepcopy(module))).eval()


def _of_module(
    source: nn.Module, signature: Signature, plan: Plan, context: Context, model: ModelSettings | None
) -> Variant:
    check_plan(plan)
    before = _served(source, signature)
    state = State(before, signature, parent=lambda: before, model=model)
    float_form: nn.Module = before
    for step in plan:
        state = run_step(step, state, context)
        float_form = float_form if isinstance(state.module, fx.GraphModule) else state.module
    return Variant(
        module=state.module,
        signature=signature,
        plan=state.plan,
        decisions=state.decisions,
        before=before,
        float_form=float_form,
        model=state.model,
        origin=model,
        data=context.data or "",
        seed=context.seed,
        what={"compression": what_decides(context.threads)},
    )


def _of_artifact(store: Store, source: str, plan: Plan, context: Context) -> Variant:
    parent = source if is_digest(source) else store.ref(source)
    digest = apply_plan(store, parent, plan, context)
    rebuilt = rebuild(store, digest, allowed=context.allowed)
    floats = tuple(step for step in plan if not isinstance(step, StaticInt8 | DynamicInt8))
    manifest = rebuilt.manifest
    return Variant(
        module=rebuilt.module,
        signature=manifest.signature,
        plan=manifest.plan,
        decisions=manifest.decisions,
        before=rebuild(store, parent, allowed=context.allowed).module,
        float_form=rebuild(store, apply_plan(store, parent, floats, context), allowed=context.allowed).module,
        model=manifest.model,
        origin=store.manifest(parent).model,
        data=manifest.data,
        seed=manifest.seed,
        what=manifest.what,
        digest=digest,
    )


def _read(plan: Plan | Sequence[Step | Mapping[str, Any]]) -> Plan:
    try:
        return PLAN.validate_python(tuple(plan))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"the plan is not valid at {place}", first["msg"]) from error


def _dataset(data: Data | None, seed: int, allowed: Collection[str]) -> Dataset | None:
    if data is None or isinstance(data, Dataset):
        return data
    if isinstance(data, tuple):
        return from_arrays(*data, seed=seed)
    return load(data, seed=seed, cache=default_cache(), allowed=allowed)


def _packed(module: nn.Module, decisions: Sequence[Mapping[str, Any]]) -> int:
    """Bytes of weights and decisions as an artifact keeps them (its manifest adds about 1 KB)."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors_of(module).items()}
    return len(pack_tensors(tensors)) + len(canonical(list(decisions)))
