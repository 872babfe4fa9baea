"""Graphs that this process traced, by what decides their form.

Tracing takes a second or more, and a search needs one form again and again: it makes many int8 variants of a
recovered model, each of which is quantized, scored and measured. Weights come later, so graphs of one form
differ in their tensors alone.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from orchestrator.config.base import Settings, fingerprint
from orchestrator.config.model import ModelSettings
from orchestrator.config.signature import Signature
from orchestrator.config.steps import Clipping, DynamicInt8, Recovery, StaticInt8
from orchestrator.runtime.quiet import quiet

_MOST = 8
_LARGEST_BYTES = 8 * 2**20


class Graphs:
    """A few small graphs, the one used last at the end. What is kept is never handed out, only copies."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, fx.GraphModule] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, form: str | None) -> bool:
        return form in self._kept

    def take(self, form: str | None) -> fx.GraphModule | None:
        """A copy of the graph of this form, with any weights; None when there is none."""
        with self._lock:
            if form is None or form not in self._kept:
                return None
            self._kept.move_to_end(form)
            return _copy(self._kept[form])

    def keep(self, form: str | None, graph: nn.Module) -> None:
        """Keep a copy of a graph, if it is small and no other of its form is kept."""
        if form is None or form in self or not isinstance(graph, fx.GraphModule):
            return
        if sum(tensor.nbytes for tensor in graph.state_dict().values()) > _LARGEST_BYTES:
            return
        with self._lock:
            self._kept[form] = _copy(graph)
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept.clear()


TRACED = Graphs()
"""Float models as they were exported."""
QUANTIZED = Graphs()
"""int8 graphs; each was lowered once before it was stored."""


def form_of(
    model: ModelSettings | None,
    signature: Signature,
    plan: Sequence[Settings],
    decisions: Sequence[Mapping[str, Any]],
) -> str | None:
    """What decides the form of a built-in model's graph after a plan; None for code of others.

    Weights, scales and how they were found decide nothing of it, nor do steps that move weights alone.
    """
    if model is None or ":" in model.factory:
        return None
    steps = [
        _decides(step, decision)
        for step, decision in zip(plan, decisions, strict=True)
        if not isinstance(step, Recovery | Clipping)
    ]
    return fingerprint([model.plain(), signature.plain(), steps])


def with_weights_of(graph: fx.GraphModule, module: nn.Module) -> bool:
    """Put a module's tensors into a graph of another module of its form; False if they do not fit."""
    own, given = _tensors(graph), _tensors(module)
    shapes = {name: (given[name].shape, given[name].dtype) for name in own if name in given}
    if shapes != {name: (tensor.shape, tensor.dtype) for name, tensor in own.items()}:
        return False
    for name, tensor in own.items():
        tensor.data.copy_(given[name].data)
    return True


def _decides(step: Settings, decision: Mapping[str, Any]) -> list[Any]:
    if isinstance(step, StaticInt8 | DynamicInt8):
        names = ("reduce_range", "keep_float", "functional")
        return [step.kind, *(decision.get(name) for name in names)]
    return [step.plain(), dict(decision)]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _copy(graph: fx.GraphModule) -> fx.GraphModule:
    with quiet():
        return copy.deepcopy(graph)
