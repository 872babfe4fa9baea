"""The least bytes that a variant of a search can have, as far as that is known before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TypeVar

from pydantic import ValidationError
from torch import nn

from orchestrator.compression.plan import Context, State, apply_step
from orchestrator.compression.step import makes_zeros
from orchestrator.config.base import fingerprint
from orchestrator.config.free import Config, Template, grid
from orchestrator.config.run import ModelEntry
from orchestrator.config.search import SearchSettings
from orchestrator.config.signature import Signature
from orchestrator.config.steps import (
    EXECUTIONS,
    ChannelPruning,
    Clipping,
    Distill,
    Merge,
    Plan,
    Precision,
    Qat,
    Recovery,
    Step,
    precision_of,
)
from orchestrator.config.tuning import TrainingSearch, tuned
from orchestrator.errors import CompressionError
from orchestrator.models.base import weights_of
from orchestrator.models.build import build
from orchestrator.search.arms import arms
from orchestrator.search.space import plan_of

_BITS: dict[Precision, int] = {
    "fp32": 32,
    "bf16": 16,
    "fp8": 8,
    "int8_static": 8,
    "int8_dynamic": 8,
    "int8_weight_only": 8,
    "int4_weight_only": 4,
}
"""Of a weight at least; layers may stay in a wider type."""


T = TypeVar("T")


class _Unknown(Exception):  # noqa: N818 - an answer, not a failure
    """How much is left depends on weights, or on code that is not ours."""


def least_bytes(
    settings: SearchSettings, parent: nn.Module, signature: Signature, allowed: Collection[str]
) -> int | None:
    """Bytes that the weights of every variant and every arm take at least; None where that is not known.

    Looked at are all options and both ends of each range together: in between no variant is smaller. What
    channel pruning by the same share of each layer leaves does not depend on weights, so `parent` may be
    untrained. How far a file shrinks that leaves zeros out does: with a step that sets weights to zero
    nothing is known, and the trained `parent` must have few zeros.
    """
    plans = _corners(settings.space, lambda config: plan_of(config, settings))
    if plans is None:
        return None
    plans += [arm.plan for arm in arms(settings).values()] if settings.arms else []
    if any(makes_zeros(step) for plan in plans for step in plan):
        return None
    shapes: dict[str, tuple[list[Step], int]] = {}
    for plan in plans:
        shape, bits = _shaping(plan), _BITS[precision_of(plan)]
        key = fingerprint([step.plain() for step in shape])
        shapes[key] = (shape, min(bits, shapes.get(key, (shape, bits))[1]))
    found: list[int] = []
    for shape, bits in shapes.values():
        try:
            found.append(_weights(shape, parent, signature, allowed) * bits // 8)
        except CompressionError:
            continue  # no such variant
        except _Unknown:
            return None
    return min(found, default=None)


def least_trained_bytes(
    settings: TrainingSearch, entry: ModelEntry, signature: Signature, allowed: Collection[str]
) -> int | None:
    """The same of the models that a search over trainings may choose."""
    plain, models = entry.plain(), {}
    for chosen in (
        _corners(settings.space, lambda one: ModelEntry.model_validate(tuned(plain, settings, one))) or []
    ):
        if chosen.model is None or ":" in chosen.model.factory or chosen.training.sparsify is not None:
            return None
        models[fingerprint(chosen.model.plain())] = chosen.model
    sizes = [_size(build(model, signature, allowed=allowed, seed=0)) for model in models.values()]
    return min((size * _BITS["fp32"] // 8 for size in sizes), default=None)


def _corners(space: Template, made: Callable[[Config], T]) -> list[T] | None:
    """What all options and both ends of each range together stand for; None when they are too many."""
    configs = grid(space, lambda parameter: parameter.probes)
    found = []
    for config in configs or ():
        with suppress(ValidationError):  # some combinations are none
            found.append(made(config))
    return None if configs is None else found


def _shaping(plan: Plan) -> list[Step]:
    """The steps that decide how many weights there are, without what does not matter to that."""
    found: list[Step] = []
    for step in plan:
        if isinstance(step, Distill):
            found.append(Distill(model=step.model))
        elif isinstance(step, ChannelPruning):
            found.append(step.model_copy(update={"criterion": "l2", "recovery": None}))
        elif step.kind not in EXECUTIONS and not isinstance(step, Recovery | Clipping | Qat):
            found.append(step)
    return found


def _weights(shape: list[Step], parent: nn.Module, signature: Signature, allowed: Collection[str]) -> int:
    module = parent
    for step in shape:
        if isinstance(step, Distill) and ":" not in step.model.factory:
            module = build(step.model, signature, allowed=allowed, seed=0)
        elif isinstance(step, ChannelPruning) and step.amount is not None and step.scope == "layer":
            state = State(module.eval(), signature, parent=lambda: parent)
            module = apply_step(step, state, Context(seed=0)).module
        elif not (isinstance(step, Merge) and step.method != "side_by_side"):
            raise _Unknown(step.kind)
    return _size(module)


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in weights_of(module).values())
