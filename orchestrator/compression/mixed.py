"""Mixed precision: the layers that int8 hurts most stay float, until a bound on the drop holds."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from orchestrator.compression.step import Context, State, metric_of
from orchestrator.config.measure import Execution
from orchestrator.config.steps import StaticInt8
from orchestrator.errors import CompressionError
from orchestrator.measure.metrics import larger_is_better, score
from orchestrator.runtime.execute import of_module, predict
from orchestrator.runtime.int8 import is_within

Quantized = Callable[[Collection[str]], fx.GraphModule]
"""From the names of the layers that stay float to the int8 graph."""


def keep_sensitive(
    step: StaticInt8, state: State, context: Context, quantized: Quantized
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Which layers stay float, and the figures for the decision.

    A layer's sensitivity is the mean squared change of the outputs on validation rows that goes away when
    this layer alone is kept in float. Layers are added in that order, and every set is run in its own
    kernels, so what is bounded is what will be served.

    Raises:
        CompressionError: there are no validation rows, or the bound fails with one layer left in int8.
    """
    if context.validation is None or len(context.validation.ids) == 0:
        raise CompressionError("a bound on the drop needs validation rows", fix="give the data such a part")
    assert step.max_drop is not None
    part, metric = context.validation, metric_of(context, state.signature)
    sign = 1.0 if larger_is_better(metric) else -1.0
    threads = context.threads

    def outputs(module: nn.Module) -> NDArray[np.float32]:
        execution: Execution = "lowered" if isinstance(module, fx.GraphModule) else "eager"
        return predict(of_module(module, state.signature, execution, threads=threads), part.inputs)

    def drop(found: NDArray[np.float32]) -> float:
        return sign * (before - score(metric, found, part.targets, allowed=context.allowed))

    reference = outputs(state.module)
    before = score(metric, reference, part.targets, allowed=context.allowed)
    kept = list(step.keep_float)
    found = outputs(quantized(kept))
    whole = drop(found)
    if whole <= step.max_drop:
        return tuple(kept), {"drop": whole}
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    names = [name for name, layer in state.module.named_modules() if isinstance(layer, kinds)]
    candidates = [name for name in names if not is_within(name, kept)]
    least = whole
    for name in _by_sensitivity(candidates, lambda name: outputs(quantized([*kept, name])), reference):
        kept.append(name)
        least = drop(outputs(quantized(kept)))
        if least <= step.max_drop:
            return tuple(kept), {"drop": least, "drop_all_int8": whole}
    raise CompressionError(
        f"int8 drops {whole:.4f} on validation rows, and still {least:.4f} with {len(kept)} layers in float",
        step.max_drop,
        "raise max_drop, or use bf16",
    )


def _by_sensitivity(
    names: list[str], without: Callable[[str], NDArray[np.float32]], reference: NDArray[np.float32]
) -> list[str]:
    """Layers to keep in float, the most sensitive first; the least sensitive stays int8 in any case."""
    if len(names) < 2:
        return []
    error = {name: float(np.square(without(name) - reference).mean()) for name in names}
    return sorted(names, key=lambda name: (error[name], names.index(name)))[:-1]
