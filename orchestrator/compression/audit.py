"""What a plan really did: operations, bytes, memory, zeros, and how much of the work runs in int8 or fp8."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from orchestrator.compression.gate import is_masked
from orchestrator.config.signature import Signature
from orchestrator.config.steps import DynamicInt8, StaticInt8
from orchestrator.measure.cost import count
from orchestrator.measure.memory import peak_bytes
from orchestrator.models.base import weights_of
from orchestrator.models.build import build, example_inputs, example_rows
from orchestrator.runtime import fp8, int8
from orchestrator.runtime.execute import of_module
from orchestrator.runtime.rebuild import rebuild, replay
from orchestrator.store.artifacts import Manifest
from orchestrator.store.store import Store

AS_ASKED = "kept in float, as asked"
_NONE: Mapping[str, str] = {}
_COVERED = ("int8_static", "int8_dynamic", "fp8")
"""Steps that `int8` or `fp8` of the facts tells all about."""
_CONVOLUTION = "aten.convolution"
"""Of both directions."""
_CONVOLUTIONS = ("aten.conv1d", "aten.conv2d", "aten.conv3d", _CONVOLUTION, "mkldnn._convolution_pointwise")
_TRANSPOSED = (
    "aten.conv_transpose1d",
    "aten.conv_transpose2d",
    "aten.conv_transpose3d",
    "mkldnn._convolution_transpose_pointwise",
)
_LINEARS = ("aten.linear", "mkldnn._linear_pointwise", "mkl._mkl_linear")
_PRODUCTS = ("aten.mm", "aten.addmm")
_WEIGHTED = (*_CONVOLUTIONS, *_TRANSPOSED, *_LINEARS, *_PRODUCTS)
_ATTENTION = ("aten.scaled_dot_product_attention", "aten._scaled_dot_product_flash_attention_for_cpu")
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
_MATMULS = ("aten.matmul", "aten.bmm", "aten.einsum")
"""Of two activations: attention's, where it is not one operator."""


def audit(store: Store, digest: str, *, allowed: Collection[str] = ()) -> dict[str, Any]:
    """Facts about an artifact, as plain values for its record.

    Returns:
        `bytes` on disk, `macs` and `params` of one row in its float form, `zeros` (share of the
        convolutions' and linears' weights), and `int8`: None, or `share` (of the MACs of convolutions,
        linears and attention that run in int8 kernels), `kernels`, `left` (float convolutions and linears)
        and `fell_back` (`layer` and `why` of each of those and of attention's products). `fp8` says the same
        of products of e4m3 numbers, which run in kernels on GPUs that have them. `peak_bytes` are those of
        activations of 32 rows in eager or lowered execution. `masked_only`: weights are zero in a model that
        computes as much as its parent. `decided`: see `decided`.
    """
    rebuilt = rebuild(store, digest, allowed=allowed)
    manifest = rebuilt.manifest
    before = None
    if manifest.plan and manifest.parents and store.has(manifest.parents[0]):
        parent = store.manifest(manifest.parents[0])
        before = count(_float_form(parent, allowed), parent.signature).macs
    float_form = _float_form(manifest, allowed)
    facts = facts_of(rebuilt.module, float_form, manifest.signature, manifest.decisions, macs_before=before)
    return {"bytes": store.artifact_bytes(digest), **facts}


def decided(decisions: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each step of a plan reached, without what only rebuilding needs.

    Returns:
        One a step: its `kind`, its single figures, what a target left (`reached`), the layers that it kept
        in float (`keep_float`) and those that it left as they were, with the reason (`left`; of int8 and
        fp8 their own facts tell them).
    """
    return [
        {name: value for name, value in decision.items() if _tells(decision["kind"], name, value)}
        for decision in decisions
    ]


def _tells(kind: str, name: str, value: object) -> bool:
    if isinstance(value, bool | int | float | str):
        return True
    return bool(value) and (name in ("keep_float", "reached") or (name == "left" and kind not in _COVERED))


def told(step: Mapping[str, Any]) -> str:
    """One of `decided` as a line, without its kind."""
    return ", ".join(
        f"{name.replace('_', ' ')} {_said(value)}" for name, value in step.items() if name != "kind"
    )


def _said(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} ({_said(found)})" for name, found in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def facts_of(
    module: nn.Module,
    float_form: nn.Module,
    signature: Signature,
    decisions: Sequence[Mapping[str, Any]] = (),
    *,
    macs_before: int | None = None,
    batch: int = 32,
) -> dict[str, Any]:
    """The facts of a module in memory, all but its bytes; operations are counted on its float form.

    Args:
        module: in eval mode; after int8 its quantize/dequantize graph.
        float_form: the same before its numbers' type was changed.
        signature: what rows it takes.
        decisions: of the plan that made it.
        macs_before: operations of a row in the model that it came from; None where it came from none.
        batch: rows of the call whose memory is looked at.
    """
    cost = count(float_form, signature)
    kept = _kept(decisions[-1]) if decisions else {}
    rows = example_inputs(signature, batch)
    graph = module if isinstance(module, fx.GraphModule) else None
    executable = of_module(module, signature, "eager" if graph is None else "lowered", batch=batch)
    facts: dict[str, Any] = {
        "macs": cost.macs,
        "params": cost.params,
        "zeros": zeros(module),
        "int8": None if graph is None else coverage(graph, signature, kept),
        "fp8": fp8_coverage(module, signature, cost.macs, kept),
        "peak_bytes": peak_bytes(lambda: executable(rows)),
        "decided": decided(decisions),
    }
    masked = macs_before is not None and is_masked(facts, {"macs": macs_before})
    return {**facts, "masked_only": masked}


def _kept(decision: Mapping[str, Any]) -> dict[str, str]:
    """Layers that a step to int8 or fp8 was to leave in float, and why."""
    asked = dict.fromkeys(decision.get("keep_float", ()), AS_ASKED)
    return asked | decision.get("left", {}) if decision["kind"] in _COVERED else {}


def _why_kept(layer: str, kept: Mapping[str, str]) -> str | None:
    """Why a layer was to stay in float, by its own name or that of a module which it lies in."""
    return next((why for name, why in kept.items() if int8.is_within(layer, (name,))), None)


def zeros(module: nn.Module) -> float:
    """Share of the weights of convolutions and linears that are zero (of an int8 graph: its int8 weights)."""
    if isinstance(module, fx.GraphModule):
        weights = [tensor for tensor in int8.tensors(module).values() if tensor.dtype == torch.int8]
    else:
        weights = list(weights_of(module).values())
    total = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / total if total else 0.0


def coverage(graph: fx.GraphModule, signature: Signature, kept: Mapping[str, str] = _NONE) -> dict[str, Any]:
    """How much of a quantized graph becomes int8 kernels when it is lowered.

    Counted in the lowered graph: a pattern that lowering misses stays float there, with the same outputs,
    so only counting shows it. `kept` are the layers that were to stay in float, each with the reason.
    """
    rows = example_rows(signature, 2)
    with torch.no_grad():
        # Without composite operators, like the lowered graph, so that both are counted alike.
        plain = make_fx(graph)(rows)
    before = _count(plain, rows)
    lowered = int8.lower(graph, example_rows(signature, int8.EXAMPLE_ROWS))
    after = _count(lowered, rows)
    share = 1 - after.macs / before.macs if before.macs else 0.0
    fell_back = _never_rounded(graph, kept)
    missed = after.floats - len(fell_back)
    if missed > 0:
        why = "rounded, but lowering has no kernel for the pattern"
        fell_back.append({"layer": f"{missed} more", "why": why})
    fell_back += _attention(graph)
    return {"share": share, "kernels": after.kernels, "left": after.floats, "fell_back": fell_back}


def fp8_coverage(
    module: nn.Module, signature: Signature, macs: int, kept: Mapping[str, str] = _NONE
) -> dict[str, Any] | None:
    """How much of a module multiplies e4m3 numbers; None when nothing does.

    `macs` are those of a row in all. `kept` are the layers that were to stay in float, each with the reason.
    """
    layers = {name: part for name, part in module.named_modules() if isinstance(part, _LAYERS)}
    kernels = [name for name, part in layers.items() if isinstance(part, fp8.Fp8Linear)]
    if not kernels:
        return None
    own = _macs_of_layers(module, layers, signature)
    fell_back = [
        {"layer": name, "why": _why_kept(name, kept) or fp8.why_not(part)}
        for name, part in layers.items()
        if name not in kernels
    ]
    left = len(fell_back)
    if macs > sum(own.values()):
        fell_back.append({"layer": "outside of layers", "why": "fp8 has no products of two activations"})
    share = sum(own[name] for name in kernels) / macs
    return {"share": share, "kernels": len(kernels), "left": left, "fell_back": fell_back}


def _macs_of_layers(
    module: nn.Module, layers: Mapping[str, nn.Module], signature: Signature
) -> dict[str, int]:
    """Multiply-accumulates of one row in each of the convolutions and linears."""
    found = dict.fromkeys(layers, 0)

    def adder(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def add(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            assert isinstance(layer.weight, Tensor)
            transposed = getattr(layer, "transposed", False)
            found[name] += (inputs[0] if transposed else output).numel() * layer.weight[0].numel()

        return add

    hooks = [layer.register_forward_hook(adder(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            module(example_rows(signature, 1))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _never_rounded(graph: fx.GraphModule, kept: Mapping[str, str]) -> list[dict[str, str]]:
    """Convolutions, linears and products of the quantized graph that see float inputs."""
    found = []
    for node in graph.graph.nodes:
        of_weight = _operator(node.target) in _MATMULS and any(map(_is_weight, node.all_input_nodes[:2]))
        if not of_weight and _operator(node.target) not in _WEIGHTED:
            continue
        layer, sources = _layer_of(node), [str(source.target) for source in node.all_input_nodes[:2]]
        if (why := _why_kept(layer, kept)) is not None:
            found.append({"layer": layer, "why": why})
        elif not any("dequantize" in source for source in sources):
            found.append({"layer": layer, "why": "the quantizer has no int8 form of it"})
    return found


def _attention(graph: fx.GraphModule) -> list[dict[str, str]]:
    """Layers whose products of two activations stay in float, each once."""
    found = [node for node in graph.graph.nodes if _operator(node.target) in (*_ATTENTION, *_MATMULS)]
    nodes = [node for node in found if not any(map(_is_weight, node.all_input_nodes[:2]))]
    layers = dict.fromkeys(_layer_of(node) for node in nodes)
    return [{"layer": layer, "why": "products of two activations have no int8 kernel"} for layer in layers]


def _is_weight(node: fx.Node) -> bool:
    """Whether the node is a parameter, or one that was only turned or shaped otherwise."""
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node.op == "get_attr"


def _operator(target: object) -> str:
    """Without its overload: some calls have one (aten.mm.default), some have none (mkl._mkl_linear)."""
    return ".".join(str(target).split(".")[:2])


def _layer_of(node: fx.Node) -> str:
    """Name of the module that made the node, as exporting recorded it; else the node's own."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values()]
    return paths[-1] if paths and paths[-1] else node.name


@dataclass
class _Counts:
    macs: int = 0
    """In float."""
    floats: int = 0
    """Convolutions and linears."""
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
            macs = _macs(_operator(name), args, result)
            self.counts.macs += macs + _attention_macs(_operator(name), args, result)
            self.counts.floats += macs > 0
        return result


def _count(graph: fx.GraphModule, rows: Tensor) -> _Counts:
    counter = _Counter(graph)
    with torch.no_grad():
        counter.run(rows)
    return counter.counts


def _macs(operator: str, args: tuple[Any, ...], result: Any) -> int:
    """Multiply-accumulates of a convolution, linear or product with weights; 0 of anything else."""
    if operator in _TRANSPOSED or (operator == _CONVOLUTION and args[6]):
        return int(args[0].numel()) * int(args[1].numel() // args[0].shape[1])
    if operator in _CONVOLUTIONS:
        return int(result.numel()) * int(args[1].numel() // args[1].shape[0])
    if operator in _LINEARS:
        return int(result.numel()) * int(args[0].shape[-1])
    if operator in _PRODUCTS:
        return int(result.numel()) * int(args[-1].shape[0])
    return 0


def _attention_macs(operator: str, args: tuple[Any, ...], result: Any) -> int:
    """Multiply-accumulates of products of two activations; 0 of anything else."""
    if operator in _ATTENTION:
        queries, keys, values = args[:3]
        scores = int(queries.numel()) // int(queries.shape[-1]) * int(keys.shape[-2])
        return scores * int(queries.shape[-1] + values.shape[-1])
    if operator in _MATMULS:
        return int(result.numel()) * int(args[0].shape[-1])
    return 0


def _float_form(manifest: Manifest, allowed: Collection[str]) -> nn.Module:
    """The model in float, of the same widths, with other weights."""
    module: nn.Module = build(manifest.model, manifest.signature, allowed=allowed, seed=0).eval()
    for step, decision in zip(manifest.plan, manifest.decisions, strict=True):
        if not isinstance(step, StaticInt8 | DynamicInt8):
            module = replay(step, module, decision, manifest.signature)
    return module
