"""Compression steps. A plan is a tuple of steps, nothing else.

Each step's `stage` is a coarse place in the order `distill/merge < prune < factorize < recovery < clip < qat
< quantize`; a plan whose stages do not rise is refused. Recoveries alone may follow each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, cast

from pydantic import Field, TypeAdapter

from orchestrator.config.base import Settings
from orchestrator.config.clipping import Clipping
from orchestrator.config.distillation import Distill
from orchestrator.config.factorization import Factorization
from orchestrator.config.merging import Merge
from orchestrator.config.pruning import (
    ChannelPruning,
    Criterion,
    HeadPruning,
    MagnitudePruning,
    VocabularyPruning,
)
from orchestrator.config.quantization import (
    EXECUTIONS,
    Bf16,
    DynamicInt8,
    Fp8,
    Precision,
    Qat,
    StaticInt8,
    WeightOnlyInt4,
    WeightOnlyInt8,
)
from orchestrator.config.training import DistillationLoss, StepTraining, Training, over

__all__ = [
    "EXECUTIONS",
    "PLAN",
    "Bf16",
    "ChannelPruning",
    "Clipping",
    "Criterion",
    "Distill",
    "DynamicInt8",
    "Factorization",
    "Fp8",
    "HeadPruning",
    "MagnitudePruning",
    "Merge",
    "Plan",
    "Precision",
    "Qat",
    "Recovery",
    "StaticInt8",
    "Step",
    "VocabularyPruning",
    "WeightOnlyInt4",
    "WeightOnlyInt8",
    "others_of",
    "with_others",
]


_RECOVERY = Training(epochs=3, lr=0.02, loss=DistillationLoss())


class Recovery(Settings):
    """Fine-tune after a lossy step, by distillation from the parent unless `training.loss` says otherwise.

    Weights that an earlier magnitude pruning set to zero stay zero. Recoveries in a row are one training
    whose settings change on the way: each has its own schedule and a fresh optimizer, but row order and
    augmentation go on from the epoch where the one before it ended.
    """

    kind: Literal["recover"] = "recover"
    stage: ClassVar[int] = 20
    training: Annotated[StepTraining, over(_RECOVERY)] = _RECOVERY


Step = Annotated[
    Distill
    | Merge
    | ChannelPruning
    | HeadPruning
    | VocabularyPruning
    | Factorization
    | MagnitudePruning
    | Recovery
    | Clipping
    | Qat
    | Bf16
    | Fp8
    | StaticInt8
    | DynamicInt8
    | WeightOnlyInt8
    | WeightOnlyInt4,
    Field(discriminator="kind"),
]
Plan = tuple[Step, ...]
PLAN: TypeAdapter[Plan] = TypeAdapter(Plan)
"""Reads a plan from plain values."""


def first_out_of_order(plan: Sequence[Step]) -> tuple[Step, Step] | None:
    """The first two neighbours whose stages do not rise, but for recoveries in a row; None when all do."""
    return next(
        (
            (before, after)
            for before, after in itertools.pairwise(plan)
            if after.stage <= before.stage and not before.kind == after.kind == "recover"
        ),
        None,
    )


def epochs_of(plan: Sequence[Step]) -> int:
    """Epochs that the steps of a plan train, as far as none ends early."""
    return sum(map(_epochs, plan))


def _epochs(step: Step) -> int:
    if isinstance(step, ChannelPruning):
        return 0 if step.recovery is None else (step.rounds - 1) * step.recovery.epochs
    training: Training | None = getattr(step, "training", None)
    return 0 if training is None else training.epochs


def work_of(plan: Sequence[Step]) -> float:
    """About how much a plan trains compared with others: epochs, each as the share of the operations that the
    pruning before it leaves.

    What is left in each layer is known only when a model is cut: `amount` and `params` are taken for all
    layers alike, and a target of latency for one of operations.
    """
    left, work = 1.0, 0.0
    for step in plan:
        if isinstance(step, ChannelPruning):
            share = (1 - step.amount) ** 2 if step.amount else step.macs or step.params or step.latency or 1.0
            work += _epochs(step) * left * (1 + share) / 2
            left *= share
        else:
            work += _epochs(step) * left
    return work


def precision_of(plan: Sequence[Step]) -> Precision:
    """The number type that a plan ends in; fp32 when no step changes it."""
    found = [step.kind for step in plan if step.kind in EXECUTIONS]
    return cast(Precision, found[-1]) if found else "fp32"


def others_of(step: Settings) -> tuple[str, ...]:
    """Refs or digests of the models and ensembles that a step takes besides the one it is applied to."""
    others: tuple[str, ...] = getattr(step, "others", ())
    ensemble: str | None = getattr(step, "ensemble", None)
    return others if ensemble is None else (*others, ensemble)


def with_others(step: Step, digest: Callable[[str], str]) -> Step:
    """The step with all that `others_of` gives named by digest: a ref may move."""
    found: dict[str, object] = {}
    if getattr(step, "others", ()):
        found["others"] = tuple(map(digest, getattr(step, "others", ())))
    if getattr(step, "ensemble", None) is not None:
        found["ensemble"] = digest(getattr(step, "ensemble", ""))
    return step.model_copy(update=found) if found else step
