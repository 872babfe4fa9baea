"""What a plan really did: operations, bytes, zeros, and how much of the work runs in int8 kernels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from orchestrator.config.signature import Signature
from orchestrator.config.steps import DynamicInt8, StaticInt8
from orchestrator.measure.cost import count
from orchestrator.models.base import weights_of
from orchestrator.models.build import build, example_rows
from orchestrator.runtime import int8
from orchestrator.runtime.rebuild import rebuild, replay
from orchestrator.store.artifacts import Manifest
from orchestrator.store.store import Store

_CONVOLUTIONS = ("aten.conv1d", "aten.conv2d", "aten.convolution", "mkldnn._convolution_pointwise")
_LINEARS = ("aten.linear", "mkldnn._linear_pointwise", "mkl._mkl_linear")
_PRODUCTS = ("aten.mm", "aten.addmm")


def audit(store: Store, digest: str, *, allowed: Collection[str] = ()) -> dict[str, Any]:
    """Facts about an artifact, as plain values for its record.

    Returns:
        `bytes` on disk, `macs` and `params` of one row in its float form, `zeros` (share of the
        convolutions' and linears' weights), and `int8`: None, or `share` (of the convolutions' and
        linears' MACs that run in int8 kernels), `kernels`, `left` (float convolutions and linears) and
        `fell_back` (`layer` and `why` of each of those).
    """
    rebuilt = rebuild(store, digest, allowed=allowed)
    manifest = rebuilt.manifest
    facts = facts_of(rebuilt.module, _float_form(manifest, allowed), manifest.signature)
    return {"bytes": store.artifact_bytes(digest), **facts}


def facts_of(module: nn.Module, float_form: nn.Module, signature: Signature) -> dict[str, Any]:
    """The facts of a module in memory, all but its bytes; operations are counted on its float form."""
    cost = count(float_form, signature)
    return {
        "macs": cost.macs,
        "params": cost.params,
        "zeros": zeros(module),
        "int8": coverage(module, signature) if isinstance(module, fx.GraphModule) else None,
    }


def zeros(module: nn.Module) -> float:
    """Share of the weights of convolutions and linears that are zero (of an int8 graph: its int8 weights)."""
    if isinstance(module, fx.GraphModule):
        weights = [tensor for tensor in int8.tensors(module).values() if tensor.dtype == torch.int8]
    else:
        weights = list(weights_of(module).values())
    total = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / total if total else 0.0


def coverage(graph: fx.GraphModule, signature: Signature) -> dict[str, Any]:
    """How much of a quantized graph becomes int8 kernels when it is lowered.

    Counted in the lowered graph: a pattern that lowering misses stays float there, with the same outputs,
    so only counting shows it.
    """
    before = _count(graph, example_rows(signature, 2))
    lowered = int8.lower(graph, example_rows(signature, int8.EXAMPLE_ROWS))
    after = _count(lowered, example_rows(signature, 2))
    share = 1 - after.macs / before.macs if before.macs else 0.0
    fell_back = _never_rounded(graph)
    missed = after.floats - len(fell_back)
    if missed > 0:
        why = "rounded, but lowering has no kernel for the pattern"
        fell_back.append({"layer": f"{missed} more", "why": why})
    return {"share": share, "kernels": after.kernels, "left": after.floats, "fell_back": fell_back}


def _never_rounded(graph: fx.GraphModule) -> list[dict[str, str]]:
    """Convolutions, linears and products of the quantized graph that see float inputs."""
    found, why = [], "kept in float, or the quantizer has no int8 form of it"
    for node in graph.graph.nodes:
        operator = ".".join(str(node.target).split(".")[:2])
        if operator not in (*_CONVOLUTIONS, *_LINEARS, *_PRODUCTS):
            continue
        sources = [str(source.target) for source in node.all_input_nodes[:2]]
        if not any("dequantize" in source for source in sources):
            found.append({"layer": _layer_of(node), "why": why})
    return found


def _layer_of(node: fx.Node) -> str:
    """Name of the module that made the node, as exporting recorded it; else the node's own."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values()]
    return paths[-1] if paths and paths[-1] else node.name


@dataclass
class _Counts:
    macs: int = 0
    """Of float convolutions and linears."""
    floats: int = 0
    kernels: int = 0


class _Counter(fx.Interpreter):
    """Runs a graph and counts its convolutions and linears."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.counts = _Counts()

    def run_node(self, n: fx.Node) -> Any:
        """One node of the graph."""
        result = super().run_node(n)
        name = str(n.target)
        if n.op == "call_function" and name.startswith(int8.KERNELS):
            self.counts.kernels += 1
        elif n.op == "call_function":
            args, _ = self.fetch_args_kwargs_from_env(n)
            macs = _macs(name, args, result)
            self.counts.macs += macs
            self.counts.floats += macs > 0
        return result


def _count(graph: fx.GraphModule, rows: Tensor) -> _Counts:
    counter = _Counter(graph)
    with torch.no_grad():
        counter.run(rows)
    return counter.counts


def _macs(name: str, args: tuple[Any, ...], result: Any) -> int:
    # Some calls are overloads (aten.mm.default), some are not (mkl._mkl_linear).
    operator = ".".join(name.split(".")[:2])
    if operator in _CONVOLUTIONS:
        return int(result.numel()) * int(args[1].numel() // args[1].shape[0])
    if operator in _LINEARS:
        return int(result.numel()) * int(args[0].shape[-1])
    if operator in _PRODUCTS:
        return int(result.numel()) * int(args[-1].shape[0])
    return 0


def _float_form(manifest: Manifest, allowed: Collection[str]) -> nn.Module:
    """The model in float, of the same widths, with other weights."""
    module: nn.Module = build(manifest.model, manifest.signature, allowed=allowed, seed=0).eval()
    for step, decision in zip(manifest.plan, manifest.decisions, strict=True):
        if not isinstance(step, StaticInt8 | DynamicInt8):
            module = replay(step, module, decision, manifest.signature)
    return module
