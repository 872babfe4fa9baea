"""int8 graphs (PT2E, X86 quantizer): made, read back without data, and lowered to oneDNN kernels.

Lowering here differs from `torchao.quantization.pt2e.lowering.lower_pt2e_quantized_to_x86` (0.18) in
four ways: the batch stays dynamic, weights are packed for the batch that is expected, a `view` after a
channels-last convolution becomes a `reshape`, and max pooling stays in int8.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._inductor.constant_folding import constant_fold
from torch._inductor.fx_passes.freezing_patterns import freezing_passes
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn import functional

from orchestrator.errors import CompressionError, CorruptArtifactError, ExecutionError
from orchestrator.runtime.graphs import TRACED, with_weights_of
from orchestrator.runtime.int8_passes import (
    expect_example,
    fence_sums,
    functionalize,
    move_integers,
    read_once,
    transposes_to_permutes,
    views_to_reshapes,
)
from orchestrator.runtime.quiet import quiet
from orchestrator.runtime.torchao_names import (
    DEQUANTIZE,
    QUANTIZE,
    HistogramObserver,
    PerChannelMinMaxObserver,
    X86InductorQuantizer,
    convert_pt2e,
    get_default_x86_inductor_quantization_config,
    prepare_pt2e,
    should_reduce_range,
)

Mode = Literal["static", "dynamic"]
Observer = Callable[..., Callable[[], nn.Module]]
"""From an observer's options to what makes one: `with_args` of a torchao observer."""

EXAMPLE_ROWS = 8
"""Rows of the example that a graph is traced with; the batch is dynamic, but 0 and 1 would be specialised."""

KERNELS = ("onednn.qconv", "onednn.qlinear")
"""How the names of oneDNN's int8 operators begin."""

LEAST_SCALE = 2**-30
"""torchao's recipe has 2^-12: a channel of weights below 0.03 then loses bits, and batch norm that is
folded into a convolution makes such channels."""

_NARROW = 127
"""Largest integer of an activation of 7 bits."""
_FUNCTIONAL = "functional"
_RANGE_AT_RUN_TIME = torch.ops.quantized_decomposed.choose_qparams.tensor
_FROM_SIGNATURE = ("preprocess.", "rescale.")
_FROM_SETTINGS = ("body.front.even", "body.front.odd", "body.front.bands")
"""Fixed matrices of spectrograms (`models.logmel`): larger than the network behind them."""


class _RowLinear(nn.Linear):
    """A linear that sees rows [N, C] whatever its input's rank: lowering fuses no others (pytorch#116492)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return functional.linear(x, self.weight, self.bias)
        rows = functional.linear(x.reshape(-1, self.in_features), self.weight, self.bias)
        return rows.reshape(*x.shape[:-1], self.out_features)


def reduce_range() -> bool:
    """Whether kernels have no VNNI here, so that activations must keep to 7 bits."""
    # A process that is held to AVX2 stands for a CPU that has no more.
    held = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2") and "VNNI" not in (
        os.environ.get("ONEDNN_MAX_CPU_ISA", "VNNI").upper()
    )
    return held or bool(should_reduce_range(torch.device("cpu")))


def quantize(
    module: nn.Module,
    mode: Mode,
    narrow: bool,
    example: Tensor,
    calibrate: Callable[[nn.Module], object],
    keep_float: Collection[str] = (),
    observer: Observer | None = None,
    form: str | None = None,
    functional: bool = True,
) -> fx.GraphModule:
    """The module's graph with int8 weights and quantize/dequantize pairs around convolutions and linears.

    It computes what the lowered graph computes, slowly: lower it before running or timing it. The graph's
    form depends on neither weights nor data, so a rebuild from any weights has the same nodes.

    Args:
        module: a float module in eval mode; it is changed, give a copy.
        mode: `static` quantizes convolutions and linears, `dynamic` linears alone (there are no
            dynamic convolution kernels).
        narrow: keep activations to 7 bits, for CPUs without VNNI.
        example: rows to trace with, at least two.
        calibrate: called with the prepared graph; runs rows through it.
        keep_float: names of layers that are left as they are.
        observer: makes what finds the ranges of static activations; torchao's histogram when not given.
        form: what decides the form of the module's own graph (`graphs.form_of`), to trace it once for many
            weights.
        functional: replace operators that work in place; older graphs are rebuilt without.

    Raises:
        CompressionError: the module cannot be exported, has no layer of a name, or nothing in it can be
            quantized.
    """
    check_names(module, keep_float)
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = _RowLinear
    traced = _traced(module, example, form)
    replaced = functional and functionalize(traced.graph)
    traced.recompile()
    try:
        with quiet():
            prepared = prepare_pt2e(traced, _quantizer(mode, narrow, observer, keep_float))
            with torch.no_grad():
                calibrate(prepared)
            graph: fx.GraphModule = convert_pt2e(prepared)
    except Exception as error:
        # Observers and passes meet operators that torchao's authors did not think of.
        raise _failed("no int8 graph can be made", _name_of(module), error) from error
    if not any("_frozen_param" in str(node.target) for node in graph.graph.nodes):
        kinds = "convolution or linear" if mode == "static" else "linear"
        raise CompressionError(
            f"int8 ({mode}) would quantize nothing: no {kinds} was found in", _name_of(module)
        )
    _drop_checks(graph)
    graph.meta[_FUNCTIONAL] = replaced
    for name in ("train", "eval"):
        # PT2E's own refuse even what the graph is: an eval-mode module, which callers may ask for.
        graph.__dict__.pop(name, None)
    return graph


def decided(graph: fx.GraphModule) -> dict[str, bool]:
    """What `quantize` did that a rebuild must do again: `functional`, where it changed something."""
    return {_FUNCTIONAL: True} if graph.meta.get(_FUNCTIONAL) else {}


def _traced(module: nn.Module, example: Tensor, form: str | None) -> fx.GraphModule:
    """The module as an exported graph, traced once in this process for all modules of its form."""
    graph = TRACED.take(form)
    if graph is not None and with_weights_of(graph, module):
        return graph
    graph = export(module, example).module()
    assert isinstance(graph, fx.GraphModule)
    TRACED.keep(form, graph)
    return graph


def check_names(module: nn.Module, keep_float: Collection[str]) -> None:
    """Raise CompressionError for a layer to keep in float that the module does not have."""
    known = dict(module.named_modules())
    for name in keep_float:
        if name not in known:
            raise CompressionError("there is no layer to keep in float of this name", name)


def is_within(layer: str, names: Collection[str]) -> bool:
    """Whether a layer's name is one of these, or it lies in a module of one."""
    return any(layer == name or layer.startswith(f"{name}.") for name in names)


class _Quantizer(X86InductorQuantizer):  # type: ignore[misc]
    """torchao's, which would round products of integers as well: no observer and no kernel takes them."""

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Write to each node what of it is rounded."""
        super().annotate(model)
        for node in model.graph.nodes:
            if any(map(_is_integer, (node, *node.all_input_nodes))):
                node.meta.pop("quantization_annotation", None)
        return model


def _is_integer(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and not value.is_floating_point()


def _quantizer(
    mode: Mode, narrow: bool, observer: Observer | None, keep_float: Collection[str]
) -> _Quantizer:
    config = _quantization(mode, narrow, observer)
    quantizer = _Quantizer()
    if mode == "static":
        quantizer.set_global(config)
    else:
        quantizer.set_module_type_qconfig(nn.Linear, config)
    for name in keep_float:
        quantizer.set_module_name_qconfig(name, None)
    return quantizer


def _quantization(mode: Mode, narrow: bool, observer: Observer | None) -> Any:
    """torchao's recipe for x86, with finer scales and another observer of activations."""
    config = get_default_x86_inductor_quantization_config(is_dynamic=mode == "dynamic", reduce_range=narrow)
    finest = PerChannelMinMaxObserver.with_args(eps=LEAST_SCALE)
    config = replace(config, weight=replace(config.weight, observer_or_fake_quant_ctr=finest))
    if mode == "static":
        made = (observer or HistogramObserver.with_args)(eps=LEAST_SCALE)
        activation = replace(config.input_activation, observer_or_fake_quant_ctr=made)
        config = replace(config, input_activation=activation, output_activation=activation)
    return config


def export(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The module as an exported program for any batch size.

    Raises:
        CompressionError: the module's code cannot be traced whole.
    """
    try:
        with quiet(), torch.no_grad():
            # strict: else the quantizer finds nn.Linear modules only, and skips functional.linear silently.
            return torch.export.export(module, (example,), dynamic_shapes=({0: Dim.AUTO},), strict=True)
    except Exception as error:
        raise CompressionError(
            f"torch.export cannot trace the model ({type(error).__name__}: {str(error).strip()[:300]})",
            _name_of(module),
            "avoid data-dependent control flow and a fixed batch size in its forward",
        ) from error


def arguments(graph: fx.GraphModule) -> list[list[Any]]:
    """Scale, zero point and range of each quantize/dequantize call, in the graph's order: plain JSON."""
    return [[node.name, *node.args[1:5]] for node in _calls(graph)]


def tensors(graph: fx.GraphModule) -> dict[str, Tensor]:
    """The tensors that the graph reads, by name: what must be saved. Scaling comes from the signature, and a
    spectrogram's matrices from the settings."""
    state = graph.state_dict(keep_vars=True)
    state.update(graph.named_buffers())
    names = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    return {
        name: state[name].detach()
        for name in sorted(names)
        if name in state and not name.startswith(_FROM_SIGNATURE) and name not in _FROM_SETTINGS
    }


def restore(graph: fx.GraphModule, recorded: list[list[Any]], saved: Mapping[str, Tensor]) -> None:
    """Overwrite a graph's quantization arguments and tensors with recorded ones, in place.

    Raises:
        CorruptArtifactError: they are of another graph.
    """
    calls, own = list(_calls(graph)), tensors(graph)
    if [node.name for node in calls] != [row[0] for row in recorded] or own.keys() != saved.keys():
        raise CorruptArtifactError(
            "the recorded int8 graph is not the one this version of torch and torchao builds",
            f"torch {torch.__version__}",
            "use the versions it was made with, or compress again",
        )
    for node, (_, *values) in zip(calls, recorded, strict=True):
        node.args = (node.args[0], *values, *node.args[5:])
    for name, tensor in own.items():
        if tensor.shape != saved[name].shape or tensor.dtype != saved[name].dtype:
            raise CorruptArtifactError("a stored tensor does not fit the rebuilt graph", name)
        tensor.copy_(saved[name])
    graph.recompile()


def lower(graph: fx.GraphModule, example: Tensor) -> fx.GraphModule:
    """The quantized graph with oneDNN's int8 kernels in place of quantize, float kernel, dequantize.

    Takes any batch size from 1 on. A second or less, no compiler; not picklable and not exportable.

    Raises:
        CompressionError: torchao's passes fail on this graph.
        ExecutionError: its activations have 8 bits, and this CPU lacks VNNI.
    """
    check_range(_largest(graph))
    try:
        with quiet(), torch.no_grad():
            return _lowered(graph, example)
    except Exception as error:
        # The passes check what they match with bare assertions.
        raise _failed("the int8 graph cannot be lowered", type(graph).__name__, error) from error


def check_range(largest: int) -> None:
    """Refuse activations up to this integer, 127 or 255, where the kernels of this CPU cannot add them up.

    Without VNNI oneDNN adds pairs of products in 16 bits, which 8-bit activations overflow, and does so
    without a word: a layer of 64 channels was wrong by 14 % (torch 2.13, AVX2).

    Raises:
        ExecutionError: they have 8 bits, and this CPU lacks VNNI.
    """
    if largest > _NARROW and reduce_range():
        raise ExecutionError(
            "the int8 graph keeps activations in 8 bits, which overflow on a CPU without VNNI",
            f"largest integer {largest}",
            "compress again with reduce_range: true, which runs on every CPU, or use a CPU with VNNI",
        )


def ranges_at_run_time(graph: fx.GraphModule) -> bool:
    """Whether activations are rounded by the range of each call."""
    return any(node.target is _RANGE_AT_RUN_TIME for node in graph.graph.nodes)


def _largest(graph: fx.GraphModule) -> int:
    """The largest integer of any activation."""
    calls = [node for node in graph.graph.nodes if node.target in (QUANTIZE, _RANGE_AT_RUN_TIME)]
    # One takes it after scale, zero point and smallest, the other after the smallest.
    return max((int(node.args[4 if node.target is QUANTIZE else 2]) for node in calls), default=0)


def _lowered(graph: fx.GraphModule, example: Tensor) -> fx.GraphModule:
    # Traced with a symbolic batch and without composite operators, which would hide the patterns.
    # (Exporting again gives the same graph in three times the time.)
    mode, rows = _any_batch(example)
    # Without the Python dispatcher padding would fix the batch without a word.
    with mode, enable_python_dispatcher():
        lowered: fx.GraphModule = make_fx(graph)(rows)
    if rows.shape[0].node.maybe_as_int() is not None:  # type: ignore[attr-defined]
        raise RuntimeError(f"one of its operators fixes the batch at {len(example)} rows")
    read_once(lowered.graph)
    transposes_to_permutes(lowered.graph)
    expect_example(lowered.graph)
    fences = fence_sums(lowered.graph)
    freezing_passes(lowered, (example,))
    constant_fold(lowered)
    for fence in fences:
        fence.replace_all_uses_with(fence.all_input_nodes[0])
    views_to_reshapes(lowered.graph)
    move_integers(lowered.graph)
    lowered.graph.eliminate_dead_code()
    lowered.graph.lint()
    lowered.recompile()
    return lowered


def _any_batch(example: Tensor) -> tuple[FakeTensorMode, Tensor]:
    """A stand-in for `example` whose first size is a symbol, and the mode it lives in."""
    # duck_shape would take the batch for any other size that happens to be equal.
    mode = FakeTensorMode(shape_env=ShapeEnv(duck_shape=False), allow_non_fake_inputs=True)
    sizes = [DimDynamic.DYNAMIC] + [DimDynamic.STATIC] * (example.ndim - 1)
    rows = mode.from_tensor(example, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))
    return mode, rows


def _calls(graph: fx.GraphModule) -> Iterator[fx.Node]:
    return (node for node in graph.graph.nodes if node.target in (QUANTIZE, DEQUANTIZE))


def _drop_checks(graph: fx.GraphModule) -> None:
    """Remove export's run-time checks of the input: they cost more than a small layer at batch 1."""
    for node in list(graph.graph.nodes):
        check = node.target is torch.ops.aten._assert_tensor_metadata.default
        if (check or str(node.target) == "_guards_fn") and not node.users:
            graph.graph.erase_node(node)
    graph._forward_pre_hooks.clear()
    graph.graph.lint()
    graph.recompile()


def _failed(what: str, name: str, error: Exception) -> CompressionError:
    told = f"{type(error).__name__}: {str(error).strip()[:300]}"
    return CompressionError(f"{what} ({told})", name, "quantize another architecture, or use bf16")


def _name_of(module: nn.Module) -> str:
    return type(getattr(module, "body", module)).__name__
