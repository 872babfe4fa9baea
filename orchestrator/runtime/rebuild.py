"""Manifest + weights -> module: the recorded decisions of its plan are replayed, no data is needed.

int8 brings torch's compiler, two seconds of import: it is imported by the artifacts that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.config.base import Settings
from orchestrator.config.signature import Signature
from orchestrator.config.steps import (
    Bf16,
    ChannelPruning,
    Clipping,
    Distill,
    DynamicInt8,
    Factorization,
    Fp8,
    HeadPruning,
    MagnitudePruning,
    Merge,
    Qat,
    Recovery,
    StaticInt8,
    VocabularyPruning,
    WeightOnlyInt4,
    WeightOnlyInt8,
)
from orchestrator.errors import CorruptArtifactError, ModelError
from orchestrator.models.build import build, example_rows
from orchestrator.runtime import fp8, weight_only
from orchestrator.runtime.bf16 import to_bf16
from orchestrator.runtime.channels import cut, dependency_graph, tracing
from orchestrator.runtime.graphs import QUANTIZED, form_of
from orchestrator.runtime.heads import keep_heads
from orchestrator.runtime.lowrank import split
from orchestrator.runtime.vocabulary import forget
from orchestrator.store.artifacts import Draft, Manifest
from orchestrator.store.store import Store


@dataclass(frozen=True)
class Rebuilt:
    """An artifact as a module in eval mode."""

    module: nn.Module
    """For int8 the quantize/dequantize graph: lower it before running it."""
    manifest: Manifest


def rebuild(store: Store, digest: str, *, allowed: Collection[str] = ()) -> Rebuilt:
    """Build the artifact's module anew and load its weights: bit-equal to the one that was saved.

    Args:
        store: where the artifact is.
        digest: of the artifact.
        allowed: import paths that an imported model's factory may come from; the manifest decides nothing.

    Raises:
        ModelError: the factory is not allowed or cannot be called.
        CorruptArtifactError: files are damaged, or weights and recorded decisions do not fit.
    """
    manifest = store.manifest(digest)
    saved = store.tensors(digest)
    # Replaying needs autograd, whatever mode the caller is in.
    with torch.inference_mode(False):
        module = _form(manifest, allowed)
        load_tensors(module, saved, _recorded(manifest))
    return Rebuilt(module, manifest)


def keep_form(draft: Draft, module: nn.Module) -> None:
    """Keep the form of an int8 graph that was just made, so that this process need not trace it to run it."""
    QUANTIZED.keep(_form_of(draft), module)


def _form(manifest: Manifest, allowed: Collection[str]) -> nn.Module:
    """The artifact's module with any weights."""
    if (graph := QUANTIZED.take(_form_of(manifest))) is not None:
        return graph
    # A fixed seed: some factories draw random numbers, and none of theirs may reach the result.
    module: nn.Module = build(manifest.model, manifest.signature, allowed=allowed, seed=0).eval()
    for step, decision in zip(manifest.plan, manifest.decisions, strict=True):
        module = replay(step, module, decision, manifest.signature)
    keep_form(manifest, module)
    return module


def _form_of(draft: Draft) -> str | None:
    return form_of(draft.model, draft.signature, draft.plan, draft.decisions)


def load_tensors(module: nn.Module, saved: Mapping[str, Tensor], recorded: list[list[Any]] | None) -> None:
    """Put saved tensors (and, for int8, quantization arguments) into a module of the right form.

    Raises:
        CorruptArtifactError: they do not fit.
    """
    if recorded is not None:
        from orchestrator.runtime import int8

        assert isinstance(module, torch.fx.GraphModule)
        int8.restore(module, recorded, saved)
        return
    try:
        module.load_state_dict(dict(saved), strict=True)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise CorruptArtifactError(
            "the weights do not fit the rebuilt model", first, "was its code changed since?"
        ) from error


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """What must be saved of a module: for an int8 graph only what it reads, else its state."""
    if isinstance(module, torch.fx.GraphModule):
        from orchestrator.runtime import int8

        return int8.tensors(module)
    return {name: tensor.detach() for name, tensor in module.state_dict().items()}


@singledispatch
def replay(
    step: Settings,
    module: nn.Module,  # noqa: ARG001
    decision: Mapping[str, Any],  # noqa: ARG001
    signature: Signature,  # noqa: ARG001
) -> nn.Module:
    """Give `module` the form that `step` gave the original; weights come later. It may be changed.

    Args:
        step: settings; each class registers its function here.
        module: a fresh one, all earlier steps replayed.
        decision: what `compression.plan.apply_step` recorded for the step.
        signature: of the model.
    """
    raise ModelError("no replay is registered for the step", type(step).__name__)


@replay.register(Clipping)
@replay.register(Distill)
@replay.register(MagnitudePruning)
@replay.register(Merge)
@replay.register(Qat)
@replay.register(Recovery)
def _(step: Settings, module: nn.Module, decision: Mapping[str, Any], signature: Signature) -> nn.Module:  # noqa: ARG001
    """Only weights changed, and they are loaded afterwards."""
    return module


@replay.register
def _(
    step: ChannelPruning,  # noqa: ARG001
    module: nn.Module,
    decision: Mapping[str, Any],
    signature: Signature,
) -> nn.Module:
    with _fitting("cuts"), tracing(module):
        graph = dependency_graph(module, signature)
        for name, outputs, channels in decision["history"]:
            cut(graph, module.get_submodule(name), outputs, channels)
    return module


@replay.register
def _(
    step: HeadPruning,  # noqa: ARG001
    module: nn.Module,
    decision: Mapping[str, Any],
    signature: Signature,  # noqa: ARG001
) -> nn.Module:
    with _fitting("heads"):
        keep_heads(module, decision["kept"])
    return module


@replay.register
def _(
    step: VocabularyPruning,  # noqa: ARG001
    module: nn.Module,
    decision: Mapping[str, Any],
    signature: Signature,  # noqa: ARG001
) -> nn.Module:
    with _fitting("vocabulary"):
        for name, kept in decision["kept"].items():
            forget(module, name, kept)
    return module


@replay.register
def _(
    step: Factorization,  # noqa: ARG001
    module: nn.Module,
    decision: Mapping[str, Any],
    signature: Signature,  # noqa: ARG001
) -> nn.Module:
    with _fitting("ranks"):
        split(module, decision["ranks"])
    return module


@replay.register
def _(step: Bf16, module: nn.Module, decision: Mapping[str, Any], signature: Signature) -> nn.Module:  # noqa: ARG001
    return to_bf16(module)


@replay.register
def _(step: Fp8, module: nn.Module, decision: Mapping[str, Any], signature: Signature) -> nn.Module:  # noqa: ARG001
    with _fitting("layers"):
        fp8.convert(module, decision["layers"])
    return module


@replay.register(WeightOnlyInt8)
@replay.register(WeightOnlyInt4)
def _(
    step: WeightOnlyInt8 | WeightOnlyInt4,
    module: nn.Module,
    decision: Mapping[str, Any],
    signature: Signature,  # noqa: ARG001
) -> nn.Module:
    with _fitting("groups"):
        weight_only.convert(module, decision["groups"], 8 if isinstance(step, WeightOnlyInt8) else 4)
    return module


@replay.register(StaticInt8)
@replay.register(DynamicInt8)
def _(
    step: StaticInt8 | DynamicInt8, module: nn.Module, decision: Mapping[str, Any], signature: Signature
) -> nn.Module:
    from orchestrator.runtime import int8

    example = example_rows(signature, int8.EXAMPLE_ROWS)
    mode: int8.Mode = "static" if isinstance(step, StaticInt8) else "dynamic"
    keep = decision.get("keep_float", ())
    narrow, functional = bool(decision["reduce_range"]), bool(decision.get("functional"))
    return int8.quantize(module, mode, narrow, example, _run_once(example), keep, functional=functional)


@contextmanager
def _fitting(what: str) -> Iterator[None]:
    """Name what a manifest records as damaged where the model cannot take it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise CorruptArtifactError(f"the recorded {what} do not fit the model", str(error)[:200]) from error


def _run_once(example: Tensor) -> Callable[[nn.Module], object]:
    """Observers want to have seen one batch; what they saw is overwritten."""
    return lambda prepared: prepared(example)


def _recorded(manifest: Manifest) -> list[list[Any]] | None:
    if manifest.plan and isinstance(manifest.plan[-1], StaticInt8 | DynamicInt8):
        recorded: list[list[Any]] = manifest.decisions[-1]["arguments"]
        return recorded
    return None
