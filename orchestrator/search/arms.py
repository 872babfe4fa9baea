"""Honest arms: what anybody would try first, evaluated beside every search and marked in its front.

A search that does not beat them found nothing. They do not count as trials, and the sampler does not learn
from them. The parent itself (eager fp32) and the best single member are arms, too, but no trials: they exist.
"""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.config.measure import Execution
from orchestrator.config.search import SearchSettings
from orchestrator.config.space import Config
from orchestrator.config.steps import Bf16, Plan
from orchestrator.config.training import DistillationLoss

EAGER = "fp32 eager"
"""The parent as it is."""
MEMBER = "best single member"
COMPILED = "fp32 compiled"
BF16 = "bf16 compiled"
DISTILLED = "small, distilled"
SCRATCH = "small, from labels"

_KEY = "arm"


class Arm(NamedTuple):
    """A plan on the parent and how its variant runs: the first of these that it can."""

    plan: Plan
    executions: tuple[Execution, ...]


def arms(settings: SearchSettings) -> dict[str, Arm]:
    """The arms of a search by label, those without training first."""
    compiled: tuple[Execution, ...] = ("aoti", "eager")
    found = {COMPILED: Arm((), compiled), BF16: Arm((Bf16(),), compiled)}
    if settings.small is None:
        return found
    training = settings.small.training
    assert isinstance(training.loss, DistillationLoss)  # as Distill demands
    # Nothing of the teacher is left: neither its outputs nor its layers, and no row without its label.
    labels = training.model_copy(
        update={
            "loss": training.loss.model_copy(update={"weight": 0.0, "features": ()}),
            "augment": training.augment.model_copy(update={"cutmix": None}),
        }
    )
    scratch = settings.small.model_copy(update={"training": labels})
    return found | {SCRATCH: Arm((scratch,), compiled), DISTILLED: Arm((settings.small,), compiled)}


def config_of(label: str) -> Config:
    """The config that stands for an arm."""
    return {_KEY: label}


def arm_of(config: Config) -> str | None:
    """The arm that a config stands for; None when it is of the space."""
    return str(config[_KEY]) if _KEY in config else None
