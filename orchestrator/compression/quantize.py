"""Steps that change the numbers' type: static int8, dynamic int8 and bfloat16."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

from orchestrator.compression.mixed import keep_sensitive
from orchestrator.compression.observers import observer_of
from orchestrator.compression.step import Context, State, apply_step, copy_of, stays_float
from orchestrator.config.steps import Bf16, DynamicInt8, StaticInt8
from orchestrator.errors import CompressionError
from orchestrator.models.build import example_rows
from orchestrator.runtime import int8
from orchestrator.runtime.bf16 import to_bf16
from orchestrator.runtime.graphs import QUANTIZED, form_of

CALIBRATION_BATCH = 64
"""Rows a calibration batch: observers merge a histogram a batch."""


@apply_step.register
def quantize_static(step: StaticInt8, state: State, context: Context) -> State:
    """int8 weights (per output channel) and activations (per tensor, ranges from calibration rows).

    Jacob et al. 2018 (https://arxiv.org/abs/1712.05877), through PyTorch's PT2E export.

    Raises:
        CompressionError: there are no calibration rows, nothing can be quantized, or the bound on the drop
            cannot be kept.
    """
    if context.calibration is None or len(context.calibration) == 0:
        raise CompressionError("static int8 needs calibration rows", fix="give the data a calibration part")
    rows = torch.tensor(context.calibration[: step.rows])
    narrow = step.reduce_range or int8.reduce_range()

    def quantized(keep: Collection[str]) -> fx.GraphModule:
        return _static(step, state, rows, narrow, keep)

    kept, mixed = step.keep_float, dict[str, Any]()
    if step.max_drop is not None:
        kept, mixed = keep_sensitive(step, state, context, quantized)
    graph = quantized(kept)
    decision = {"reduce_range": narrow, "rows": len(rows), "arguments": int8.arguments(graph)}
    decision |= int8.decided(graph)
    return state.after(step, graph, decision | stays_float(kept, {}) | mixed)


def _static(
    step: StaticInt8, state: State, rows: Tensor, narrow: bool, keep: Collection[str]
) -> fx.GraphModule:
    example = example_rows(state.signature, int8.EXAMPLE_ROWS)

    def calibrate(prepared: nn.Module) -> None:
        for batch in rows.split(CALIBRATION_BATCH):
            prepared(batch)

    module, observer = copy_of(state.module), observer_of(step)
    graph = int8.quantize(module, "static", narrow, example, calibrate, keep, observer, _form(state))
    made = {"reduce_range": narrow} | int8.decided(graph) | stays_float(keep, {})
    _check_kernels(graph, example, _form(state.after(step, graph, made)))
    return graph


@apply_step.register
def quantize_dynamic(step: DynamicInt8, state: State, context: Context) -> State:  # noqa: ARG001
    """int8 weights of linears; the range of their inputs is taken from each row as it comes.

    Rows are computed one by one for that: kernels have one range a call. The recipe is torchao's for x86
    (`get_default_x86_inductor_quantization_config` with `is_dynamic`), with finer scales.

    Raises:
        CompressionError: the model has no linear, or no layer to keep in float of a name.
    """
    example = example_rows(state.signature, int8.EXAMPLE_ROWS)
    narrow = step.reduce_range or int8.reduce_range()
    form, keep, module = _form(state), step.keep_float or (), copy_of(state.module)
    graph = int8.quantize(module, "dynamic", narrow, example, lambda one: one(example), keep, form=form)
    decision = {"reduce_range": narrow, "ranges": "of each row", "arguments": int8.arguments(graph)}
    decision |= int8.decided(graph)
    after = state.after(step, graph, decision | stays_float(keep, {}))
    _check_kernels(graph, example, _form(after))
    return after


@apply_step.register
def cast_bf16(step: Bf16, state: State, context: Context) -> State:  # noqa: ARG001
    """Weights and arithmetic in bfloat16; scaling, normalization and outputs stay float32."""
    return state.after(step, to_bf16(copy_of(state.module)), {})


def _form(state: State) -> str | None:
    """What decides the form of the state's graph; None where that is not known."""
    return None if state.given else form_of(state.model, state.signature, state.plan, state.decisions)


def _check_kernels(graph: fx.GraphModule, example: Tensor, form: str | None) -> None:
    """Lower the graph once a form: what cannot run in int8 fails here, not when it is served."""
    if form in QUANTIZED:
        return
    calls = [str(node.target) for node in int8.lower(graph, example).graph.nodes]
    if not any(call.startswith(int8.KERNELS) for call in calls):
        raise CompressionError("no int8 kernel would run in the lowered graph", type(graph).__name__)
