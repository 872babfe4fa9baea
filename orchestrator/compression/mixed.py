"""Mixed precision: the layers that int8 hurts most stay float, until a bound on the drop holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from orchestrator.compression.step import Context, State, metric_of
from orchestrator.config.measure import Execution, Metric
from orchestrator.config.search import Promise
from orchestrator.config.steps import StaticInt8
from orchestrator.errors import CompressionError
from orchestrator.measure.metrics import larger_is_better, score
from orchestrator.measure.promise import non_inferior
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
    part, metric = context.validation, metric_of(context, state.signature)
    sign = 1.0 if larger_is_better(metric) else -1.0
    threads = context.threads

    def outputs(module: nn.Module) -> NDArray[np.float32]:
        execution: Execution = "lowered" if isinstance(module, fx.GraphModule) else "eager"
        return predict(of_module(module, state.signature, execution, threads=threads), part.inputs)

    reference = outputs(state.module)
    before = score(metric, reference, part.targets, allowed=context.allowed)

    def judged(found: NDArray[np.float32]) -> dict[str, float]:
        facts = {"drop": sign * (before - score(metric, found, part.targets, allowed=context.allowed))}
        return facts | _bound(step, context, metric, found, reference)

    kept = list(step.keep_float)
    facts = judged(outputs(quantized(kept)))
    whole = facts["drop"]
    if _holds(step, facts):
        return tuple(kept), facts
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    names = [name for name, layer in state.module.named_modules() if isinstance(layer, kinds)]
    candidates = [name for name in names if not is_within(name, kept)]
    for name in _by_sensitivity(candidates, lambda name: outputs(quantized([*kept, name])), reference):
        kept.append(name)
        facts = judged(outputs(quantized(kept)))
        if _holds(step, facts):
            return tuple(kept), facts | {"drop_all_int8": whole}
    told = f", at {100 * step.confidence:.4g}% confidence {facts['bound']:.4f}," if step.confidence else ""
    raise CompressionError(
        f"int8 drops {whole:.4f} on validation rows, and still {facts['drop']:.4f}{told} with {len(kept)} "
        "layers in float",
        step.max_drop,
        "raise max_drop, or use bf16",
    )


def _bound(
    step: StaticInt8,
    context: Context,
    metric: Metric,
    found: NDArray[np.float32],
    reference: NDArray[np.float32],
) -> dict[str, float]:
    """The drop's upper bound where the step asks for one."""
    if step.confidence is None:
        return {}
    assert context.validation is not None
    assert step.max_drop is not None
    promise = Promise(max_drop=step.max_drop, confidence=step.confidence)
    targets, seed = context.validation.targets, context.seed
    verdict = non_inferior(metric, found, reference, targets, promise, seed=seed, allowed=context.allowed)
    return {"bound": verdict.bound}


def _holds(step: StaticInt8, facts: Mapping[str, float]) -> bool:
    assert step.max_drop is not None
    return facts.get("bound", facts["drop"]) <= step.max_drop


def _by_sensitivity(
    names: list[str], without: Callable[[str], NDArray[np.float32]], reference: NDArray[np.float32]
) -> list[str]:
    """Layers to keep in float, the most sensitive first; the least sensitive stays int8 in any case."""
    if len(names) < 2:
        return []
    error = {name: float(np.square(without(name) - reference).mean()) for name in names}
    return sorted(names, key=lambda name: (error[name], names.index(name)))[:-1]
