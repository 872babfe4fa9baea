"""The step to 8-bit floating point."""

from __future__ import annotations

from orchestrator.compression.step import Context, State, apply_step, copy_of, stays_float
from orchestrator.config.steps import Fp8
from orchestrator.errors import CompressionError
from orchestrator.models.base import tied_to_float
from orchestrator.runtime import fp8
from orchestrator.runtime.int8 import check_names, is_within


@apply_step.register
def round_linears(step: Fp8, state: State, context: Context) -> State:  # noqa: ARG001
    """e4m3 weights and activations of linears, a scale for each row; all else stays float, and so
    does a linear that shares its weight with such a layer.

    Formats by Micikevicius et al. 2022 (https://arxiv.org/abs/2209.05433), scales as in torchao's
    Float8DynamicActivationFloat8Weight with PerRow.

    Raises:
        CompressionError: there is no linear that tensor cores take, or no layer to keep in float of a name.
    """
    module = copy_of(state.module)
    check_names(module, step.keep_float)
    names = [
        name
        for name, layer in module.named_modules()
        if fp8.why_not(layer) is None and not is_within(name, step.keep_float)
    ]
    left = tied_to_float(module, names)
    names = [name for name in names if name not in left]
    if not names and left:
        raise CompressionError("fp8 would round nothing", "; ".join(f"{k}: {v}" for k, v in left.items()))
    if not names:
        raise CompressionError(
            f"fp8 would round nothing: no linear's features, in and out, are multiples of {fp8.MULTIPLE}",
            type(getattr(module, "body", module)).__name__,
            f"use bf16, or prune channels with round_to: {fp8.MULTIPLE}",
        )
    fp8.convert(module, names)
    return state.after(step, module, {"layers": names} | stays_float(step.keep_float, left))
