"""Compress a model from Python: no Ray, no run file.

variant = compress(model, [{"kind": "prune_channels", "amount": 0.5}, {"kind": "int8_static"}], data)
print(variant.audit())
variant.export("small.pt2")
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
from torch import fx, nn

from orchestrator.compression.plan import Context, State, apply_plan, check_plan, run_step, what_decides
from orchestrator.compression.sensitivity import AMOUNTS, Sensitivity, layer_sensitivity
from orchestrator.compression.step import Other, after_epochs
from orchestrator.compression.variant import Variant
from orchestrator.config.base import Settings
from orchestrator.config.data import DataSettings
from orchestrator.config.load import validate
from orchestrator.config.measure import Metric
from orchestrator.config.model import ModelSettings
from orchestrator.config.signature import Signature
from orchestrator.config.steps import Criterion, DynamicInt8, Plan, StaticInt8, Step, epochs_of
from orchestrator.data.arrays import from_arrays
from orchestrator.data.dataset import Dataset
from orchestrator.data.load import default_cache, load
from orchestrator.errors import CompressionError, ConfigError
from orchestrator.models.served import Served
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.names import is_digest
from orchestrator.store.store import Store
from orchestrator.training.state import EpochReport

Data = Dataset | DataSettings | tuple[npt.ArrayLike, npt.ArrayLike]
"""A loaded data set, settings as in a run file, or (inputs [N, ...], targets [N] or [N, T])."""


def compress(
    source: nn.Module | str,
    plan: Plan | Sequence[Step | Mapping[str, Any]],
    data: Data | None = None,
    *,
    model: ModelSettings | Mapping[str, Any] | None = None,
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
        model: settings that build the module, like `Mlp(...)` or `ImportedModel(factory=...)`, or a mapping
            as in a run file; only needed to save the variant.
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
        ConfigError: the plan or the model's settings are not valid.
        DataError: the data is missing or unreadable.
        NotFoundError: `source` is not in the store.
    """
    steps, settings = _read(plan), _read_model(model)
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
    return _of_module(source, signature, steps, replace(context, other=_finder(known)), settings)


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
    state = State(before, signature, parent=lambda: before, model=model, given=True)
    float_form: nn.Module = before
    for step in plan:
        state = run_step(step, state, after_epochs(context, epochs_of(state.plan)))
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
        what={"compression": what_decides(context.threads, context.device)},
        allowed=context.allowed,
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
        store=store,
        allowed=context.allowed,
    )


class _Steps(Settings):
    plan: Plan


def _read(plan: Plan | Sequence[Step | Mapping[str, Any]]) -> Plan:
    return validate(_Steps, {"plan": tuple(plan)}, "the plan").plan


class _Model(Settings):
    model: ModelSettings


def _read_model(model: ModelSettings | Mapping[str, Any] | None) -> ModelSettings | None:
    if model is None:
        return None
    given = dict(model) if isinstance(model, Mapping) else model
    return validate(_Model, {"model": given}, "the model's settings").model


def _dataset(data: Data | None, seed: int, allowed: Collection[str]) -> Dataset | None:
    if data is None or isinstance(data, Dataset):
        return data
    if isinstance(data, tuple):
        return from_arrays(*data, seed=seed)
    return load(data, seed=seed, cache=default_cache(), allowed=allowed)


def sensitivity(
    source: nn.Module | str,
    data: Data,
    amounts: Sequence[float] = AMOUNTS,
    *,
    criterion: Criterion = "l2",
    store: Store | str | Path | None = None,
    metric: Metric | None = None,
    seed: int = 0,
    threads: int = 1,
    allowed: Collection[str] = (),
) -> Sensitivity:
    """How much pruning each layer alone costs, without fine-tuning; `write` plots it.

    Args:
        source: as for `compress`.
        data: its validation part is looked at, by some criteria its train part.
        amounts: shares of a layer's channels to remove.
        criterion: which channels go first.
        store: where `source` is, when it is a ref or digest.
        metric: the task's plain one when not given.
        seed: of the criterion `random`, and of how arrays are cut into parts.
        threads: torch threads.
        allowed: import paths that factories and metrics may come from.

    Raises:
        CompressionError: there are no validation rows, or the model's channels cannot be ranked.
        NotFoundError: `source` is not in the store.
    """
    variant = compress(source, (), data, store=store, seed=seed, allowed=allowed)
    dataset = _dataset(data, seed, allowed)
    context = _context(dataset, seed=seed, threads=threads, metric=metric, allowed=allowed)
    state = State(variant.module, variant.signature, parent=lambda: variant.before)
    return layer_sensitivity(state, context, amounts, criterion=criterion)
